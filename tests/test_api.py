"""What people call from Python: names, types, whole runs and single decisions."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import opmix_ray
from opmix_ray.commands.progress import NotebookProgress, in_notebook
from opmix_ray.decision.progress import Progress
from opmix_ray.errors import UserError
from tests.support import TinyRun


def test_every_exported_name_is_there() -> None:
    for name in opmix_ray.__all__:
        assert callable(getattr(opmix_ray, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = opmix_ray.nothing


def test_no_room_hides_a_function_of_the_package() -> None:
    """A room of the same name would take the function's place as soon as anything imports it."""
    for name in opmix_ray.__all__:
        assert find_spec(f"opmix_ray.{name}") is None, name
    assert import_module("opmix_ray.runner.search").__name__ == "opmix_ray.runner.search"
    assert callable(opmix_ray.search)


def test_types_are_shipped() -> None:
    assert (Path(opmix_ray.__file__).parent / "py.typed").exists()


def test_a_mapping_is_a_configuration_with_paths_below_here(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.directory)
    tree = tiny.tree | {"tokenizer": {"train_vocab_size": 300}}
    tree["data"] = tree["data"] | {"domains": {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}}
    config = opmix_ray.make_config(tree)
    assert config.data.domains["a"].path == str(tiny.directory / "a.jsonl")
    with pytest.raises(UserError, match="did you mean `stages`"):
        opmix_ray.run({**{k: v for k, v in tree.items() if k != "stages"}, "stage": []}, progress=False)


def test_a_run_from_a_mapping(tiny: TinyRun, ray_session: None) -> None:
    tiny.tree["search"]["evaluators"] = 1
    result = opmix_ray.run(tiny.tree, output=str(tiny.directory / "out"), progress=False)
    assert result["steps"] == 12
    assert (tiny.directory / "out" / "report.html").exists()
    assert opmix_ray.run(tiny.tree, output=str(tiny.directory / "out"), progress=False) == result


def test_probes_and_an_interpolator_from_a_file(tiny: TinyRun, ray_session: None) -> None:
    tiny.tree["probe"]["steps"] = 40  # enough to see what a probe has learned
    file = tiny.write()
    probes = opmix_ray.train_probes(file)
    model = opmix_ray.Interpolator(probes, autocast=False)
    sets = opmix_ray.search_sets(opmix_ray.prepare(file, progress=False), 4, 16)
    losses = []
    for weights in (np.zeros(len(probes.components)), np.eye(len(probes.components))[0]):
        model.set(weights)
        losses.append(model.losses(sets, 4)["code"].mean)
    assert losses[1] < losses[0]


class Page(list[str]):
    """What a cell has shown, one entry an update."""


def test_a_notebook_shows_a_bar_and_lines() -> None:
    page = Page()
    progress = NotebookProgress(page.append)
    progress.preparing("a<b", 5, 10)
    progress.segment_started("pretrain", 0, 10, {"a": 1.0})
    progress.row(
        {"kind": "train", "step": 7, "loss": 2.5, "tokens_per_second": 1000.0, "learning_rate": 1e-3}
    )
    progress.message("half-way")
    assert '<progress value="7" max="10">' in page[-1]
    assert "7 of 10 loss 2.500, 1,000 tokens/s" in page[-1]
    assert "half-way" in page[-1]
    assert "a&lt;b" in page[0]
    progress.close()
    assert "<progress" not in page[-1]
    assert isinstance(progress, Progress)
    assert not in_notebook()
