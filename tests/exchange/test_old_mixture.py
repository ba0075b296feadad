"""`base.mixture` may be a file of another trainer, and is then what a stage that carries on begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.cli import app, exit_code
from opmix_ray.commands.export import export
from opmix_ray.config import load_config, make_config
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserErrors
from opmix_ray.runner.base import beginning, start_stage
from tests.exchange.conftest import MIXTURE, Output
from tests.support import TinyRun


@pytest.mark.parametrize("format", ["olmo-core", "llamafactory", "megatron-energon", "datasets"])
def test_a_stage_carries_on_with_the_old_mixture_in_tokens(
    format: str, text_run: Output, tiny: TinyRun, tmp_path: Path
) -> None:
    file = export(str(text_run.directory), format, str(tmp_path / "old")).files[-1]
    tiny.tree["base"] = {"mixture": str(Path(file).relative_to(tmp_path))}  # relative to the configuration
    tiny.tree["stages"][0]["start"] = "carry"
    config = tiny.load()
    start = start_stage(config, 0, beginning(config), prepare(config))
    assert start.mixture.shares == pytest.approx(MIXTURE, abs=1e-9)
    assert start.old is not None
    assert start.old.shares == pytest.approx(MIXTURE, abs=1e-9)


def test_a_new_domain_has_no_share(text_run: Output, tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("code: 0.25\nmathematics: 0.75\n")
    tiny.tree["base"] = {"mixture": str(tmp_path / "old.yaml")}
    tiny.tree["stages"][0]["start"] = "carry"
    config = tiny.load()
    start = start_stage(config, 0, beginning(config), prepare(config))
    assert start.mixture.shares == pytest.approx({"code": 0.25, "german": 0.0, "mathematics": 0.75})


def test_the_unit_can_be_said(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("code: 0.25\nmathematics: 0.75\n")
    tiny.tree["base"] = {"mixture": str(tmp_path / "old.yaml"), "mixture_unit": "documents"}
    tiny.tree["stages"][0]["start"] = "carry"
    config = tiny.load()
    prepared = prepare(config)
    long, short = (prepared.domains[name].tokens_per_document for name in ("code", "mathematics"))
    mixture = start_stage(config, 0, beginning(config), prepared).mixture
    assert mixture["code"] / mixture["mathematics"] == pytest.approx(0.25 * long / (0.75 * short))


def test_a_mixture_in_a_mapping_is_read_too(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("code: 1\nmathematics: 3\n")
    tiny.tree["base"] = {"mixture": "old.yaml"}
    assert make_config(tiny.tree, tmp_path).base.mixture == {"code": 0.25, "mathematics": 0.75}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "code: 0.5\nfrench: 0.5\n",
            "old.yaml: base.mixture = french: is neither the name nor the path of a domain",
        ),
        ("dataset: code,german\ninterleave_probs: '1'\n", "names 2 data sets and interleave_probs 1"),
        ("learning_rate: fast\n", "is not a mixture of a known format"),
        ("datasets:\n- {path: code, type: completion}\n", "code has no split: train[:N]"),
        ("code: [\n", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_a_wrong_file_is_one_line(text: str | None, words: str, tiny: TinyRun, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "old.yaml").write_text(text)
    tiny.tree["base"] = {"mixture": "old.yaml"}
    with pytest.raises(UserErrors) as caught:
        load_config(tiny.write())
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_search_names_the_option_s_file(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", str(tiny.write()), "--mixture", str(tmp_path / "none.yaml")]
    assert exit_code(lambda: app(arguments, standalone_mode=False, prog_name="opmix")) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: {tmp_path}/none.yaml: base.mixture: no such file; name the file with the mixture"
    )
