"""Columns that tell model sizes apart, as trackers and people call them: none is pooled in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import read_sweep
from opmix_ray.fit.sizes import Scales, SizeColumns
from tests.fit.test_columns import Cells
from tests.fit.test_columns import write as cells_of
from tests.fit.test_fit_cli import opmix
from tests.fit.test_sizes import DOMAINS, METRICS, SIZES, given, rows, write

COUNT = sum(SIZES.values())
VALUES = [{"70M": 70e6, "160M": 160e6, "410M": 410e6}[name] for name, n in SIZES.items() for _ in range(n)]


def sweep(place: Path, name: str, cells: list[Any], **given: Any) -> Any:
    """Metrics with a column beside them."""
    ratios, losses, _ = rows()
    runs: list[object] = [f"r{i}" for i in range(COUNT)]
    tables = [("ratios", DOMAINS, ratios, Cells()), ("metrics", METRICS, losses, {name: cells})]
    files = [
        cells_of(
            place / f"{file}.csv", {"run": runs, **dict(zip(names, values.T.tolist(), strict=True)), **more}
        )
        for file, names, values, more in tables
    ]
    return read_sweep(files[0], files[1], sizes=SizeColumns(**given))


FORMS = {
    "whole": (lambda v: f"{v:.0f}", "config.model.num_params config/params nparams N numParams total_params "
              "model.num_parameters non_embedding_params hparams.model_size params scale n_params model-size"),
    "with a unit": (lambda v: f"{v / 1e6:.0f}m", "config/model_size config.model scale arch group backbone Tags size "
                    "model.name checkpoint hidden_size"),
    "in a name": (lambda v: f"llama-{v / 1e6:.0f}M-base", "model model_name config.model.name base_model Group "
                  "variant"),
    "in millions": (lambda v: f"{v / 1e6:.0f}", "params_m|params (M)|parameters_millions|size (M)|model_size_m|"
                    "M params|config.params_m|million_params|scale (M)"),
    "in billions": (lambda v: f"{v / 1e9:.2f}", "params_b|size (B)|model_size_bn|params (billions)"),
}  # fmt: skip
CASES = [
    (form, name) for form, (_, names) in FORMS.items() for name in names.split("|" if "|" in names else None)
]


@pytest.mark.parametrize(("form", "name"), CASES)
def test_sizes_are_seen_by_name_and_unit(tmp_path: Path, form: str, name: str) -> None:
    cells = [FORMS[form][0](value) for value in VALUES]
    with pytest.raises(
        UserError, match=r"several model sizes: 70M \(12 runs\).*--target-size 410M"
    ) as caught:
        sweep(tmp_path, name, cells)
    assert caught.value.key == name
    found = sweep(tmp_path, name, cells, target_size="410M")
    assert found.scales.words() == "70M (12 runs), 160M (6 runs), 410M (5 runs)"
    assert found.metric_names == METRICS
    pooled = sweep(tmp_path, name, cells, size="none")
    assert pooled.scales is None
    assert pooled.metric_names == METRICS


@pytest.mark.parametrize(
    "name",
    ["tokens_b", "tokens (B)", "config.train_tokens_b", "billion_tokens", "ntokens", "D", "token_budget_bn"],
)
def test_tokens_are_seen_by_name_and_unit(tmp_path: Path, name: str) -> None:
    unit = 1 if name in ("ntokens", "D") else 1e9
    cells = [f"{20 * value / unit:.2f}" for value in VALUES]
    with pytest.raises(UserError, match=r"several numbers of tokens: 1.4B .*--target-tokens 8.2B"):
        sweep(tmp_path, name, cells)
    assert (
        sweep(tmp_path, name, cells, target_tokens="8.2B").scales.words().startswith("1.4B tokens (12 runs)")
    )


def test_sizes_in_the_names_of_runs_are_seen(tmp_path: Path) -> None:
    files = write(tmp_path, column="State")
    for file in files:
        text = file.read_text()
        for place, value in enumerate(VALUES):
            text = text.replace(f"\nr{place},", f"\nmix{place}-{value / 1e6:.0f}m,")
        for name in SIZES:
            text = text.replace(f",{name},", ",finished,")
        file.write_text(text)
    with pytest.raises(UserError, match=r"run: the runs have several model sizes: 70M \(12 runs\)"):
        read_sweep(*files)
    found = read_sweep(*files, sizes=SizeColumns(target_size="410M"))
    assert found.scales is not None
    assert len(found.runs) == COUNT
    assert read_sweep(*files, sizes=SizeColumns(size="none")).scales is None


WORDS = {"70M": "small", "160M": "medium", "410M": "large"}
SHAPES = ["d_model", "n_layers", "hidden_size", "num_hidden_layers", "config.n_embd", "model.depth", "width",
          "hidden_dim", "config/model/d_ff", "intermediate_size", "dModel", "num_layers"]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["model", "size", "model_size", "config.model", "scale", "arch", "Model Name", *SHAPES]
)
def test_sizes_in_words_or_by_the_architecture_are_asked_about(tmp_path: Path, name: str) -> None:
    shape = name in SHAPES
    cells: list[Any] = [8 * int(v / 1e7) if shape else WORDS[f"{v / 1e6:.0f}M"] for v in VALUES]
    what = (
        "several model sizes: 56 (12 runs), 128 (6 runs)"
        if shape
        else "several models: small (12 runs), medium (6"
    )
    with pytest.raises(UserError) as caught:
        sweep(tmp_path, name, cells)
    assert what in str(caught.value)
    assert "--size-column none" in str(caught.value)
    assert caught.value.key == name
    with pytest.raises(UserError, match="several model"):
        sweep(tmp_path, name, cells, target_size="410M")
    asked: list[str] = []
    assert sweep(tmp_path, name, cells, ask=lambda text: not asked.append(text)).scales is None  # type: ignore[func-returns-value]
    assert len(asked) == 1
    assert sweep(tmp_path, name, cells, size="none").metric_names == METRICS


QUIET: dict[str, list[Any]] = {
    "batch_size": [32, 64] * COUNT, "config.batch_size": ["1M", "2M"] * COUNT, "block_size": [512, 1024] * COUNT,
    "head_dim": [64, 128] * COUNT, "scale": [0.5, 1.0, 2.0] * COUNT, "n": [3, 5] * COUNT,
    "dataset": ["c4-10b", "c4-20b"] * COUNT,
    "host": ["a", "b"] * COUNT, "user": ["ann", "bob"] * COUNT, "n_layers": [12] * COUNT, "model": ["gpt2"] * COUNT,
    "model_size": ["70M"] * COUNT, "vocab_size": ["32k", "64k"] * COUNT, "optimizer": ["adam", "muon"] * COUNT,
    "depth_loss": np.linspace(2, 3, COUNT).tolist(), "depth": np.linspace(2, 3, COUNT).tolist(), 
    "max_steps": [100, 200] * COUNT, "seq_len": [512, 1024] * COUNT, "model_score": [1, 2] * COUNT,
}  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_other_settings_raise_no_question(tmp_path: Path, name: str) -> None:
    assert sweep(tmp_path, name, QUIET[name][:COUNT]).scales is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "410",
            "--target-size = 410: is 1.71e+05 times from all runs: 70M (12 runs), 410M (11 runs); write 410M",
        ),
        ("1", "write 1B"),
        ("70", "write 70M"),
        ("410T", "write 410M"),
        ("0.41", "write 410M"),
        ("1e15", "write 1B"),
    ],
)
def test_a_target_without_its_unit_is_refused(asked: str, said: str) -> None:
    scales = Scales(np.array([70e6] * 12 + [410e6] * 11))
    with pytest.raises(UserError) as caught:
        scales.target(asked, None)
    assert said in str(caught.value)
    with pytest.raises(UserError, match=r"--target-tokens = 20: .* write 20B"):
        Scales(None, np.array([10e9] * 6 + [20e9] * 6)).target(None, "20")


def test_far_targets_that_are_meant(tmp_path: Path) -> None:
    scales = Scales(np.array([1e5] * 6 + [3e5] * 6 + [1e6] * 6))
    assert scales.target("1B", None).size == 1e9
    with pytest.raises(UserError, match=r"write 410$"):
        Scales(np.array([70.0] * 6 + [410.0] * 6)).target("410M", None)


@pytest.mark.parametrize(("option", "value"), [("--target-tokens", "20B"), ("--target-size", "1B")])
def test_the_option_that_was_given_is_named(
    option: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"70M": 12, "160M": 11}
    files = write(tmp_path, sizes, tokens=["1.4B"] * 12 + ["3.2B"] * 11)
    assert opmix(monkeypatch, "fit", *given(*files, tmp_path / "out", 0), option, value) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {option} = ")
    assert said.count("--target-") == 1
