"""What people call from Python: names, types, whole runs and single decisions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opmix_ray
from opmix_ray.commands.progress import NotebookProgress, in_notebook
from opmix_ray.decision.progress import Progress
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture
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


DOMAINS = ["web", "code", "books"]
RATIOS = np.random.default_rng(0).dirichlet(np.ones(3), 12)
LOSSES = 3 - 0.2 * np.log(RATIOS[:, :2] + 0.02)


def fit(ratios: Any = RATIOS, metrics: Any = LOSSES, **given: Any) -> FittedLaw:
    named = {"domains": DOMAINS, "metric_names": ["a", "b"], "law": "ridge", **given}
    return opmix_ray.fit_law(ratios, metrics, **named)


def design(*given: Any, **named: Any) -> list[Mixture]:
    return opmix_ray.design(*(given or (DOMAINS, 4)), **named)


def search(**named: Any) -> Any:
    return opmix_ray.search(**{"model": "/no", "domains": {"a": "x", "b": "y"}, "progress": False, **named})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit(domains="abc"), "domains = 'abc': must be a list of names"),
        (lambda: fit(domains=[1, 2, 3]), r"domains\.0 = 1: must be text"),
        (lambda: fit(law=None), "law = None: must be text"),
        (lambda: fit(metrics=[["x", "y"]] * 12), "metrics = .*: must be an array of numbers"),
        (lambda: fit([Mixture.uniform(DOMAINS)] * 12), "ratios = .*: must be an array of numbers"),
        (lambda: fit(objective=[1, 2]), "objective = .*: must be a mapping"),
        (lambda: fit(objective={"a": np.inf}), r"objective\.a = inf: must be a number of at least 0"),
        (lambda: fit(seed=-1), "seed = -1: must be a whole number of at least 0"),
        (lambda: fit(np.tile([0.5, 0.3, 0.2], (12, 1))), "ratios: 12 rows have 1 different mixtures"),
        (lambda: fit(metrics=np.ones((12, 2))), "metrics: every metric is the same in all rows"),
        (lambda: fit(metric_names=["a", "objective"]), "metric_names = objective: is no name for a metric"),
        (lambda: fit(metrics=1e200 * LOSSES), "a: only 0 rows have a number"),
        (lambda: fit().predict([[5, 3, 2]]), "shares of a mixture must sum to 1"),
        (lambda: fit().predict([[np.nan, 0.5, 0.5]]), "shares of a mixture must sum to 1"),
        (lambda: fit().predict("x"), "ratios = x: must be an array of numbers"),
        (lambda: design(DOMAINS, 3.5), r"runs = 3\.5: must be a whole number"),
        (lambda: design(DOMAINS, "4"), "runs = '4': must be a whole number"),
        (lambda: design(DOMAINS, 2), "^runs = 2: a law needs at least 3 runs"),
        (lambda: design("abc", 4), "domains = 'abc': must be a list of names"),
        (lambda: design(["a", "a"], 4), "^domains = a,a: names `a` twice"),
        (lambda: design(seed=-1), "seed = -1: must be"),
        (lambda: design(upper={"web": math.nan}), r"upper\.web = nan: must be a number from 0 to 1"),
        (lambda: design(lower={"web": -0.6}), r"lower\.web = -0\.6: must be a number from 0 to 1"),
        (lambda: design(lower={"web": 0.6}, upper={"web": 0.3}), r"^lower\.web = 0\.6: .* above the greatest"),
        (lambda: design(lower={"web": 0.6, "code": 0.6}), r"^lower: the least shares sum to 1\.2"),
        (lambda: design(upper=dict.fromkeys(DOMAINS, 0.1)), r"^upper: the greatest shares sum to 0\.3"),
        (lambda: design(near={"web": 1}, upper={"web": 0.1}), "^near: gives `web` 1, outside"),
        (lambda: design(earlier=[{"zz": 0.5, "web": 0.5}]), r"^earlier\.0 = zz: no such domain"),
        (lambda: design(tokens=dict.fromkeys(DOMAINS, 0)), "^tokens: no domain has a share above 0"),
        (lambda: opmix_ray.load_config({"a": 1}), "path = .*: must be a path or text"),
        (lambda: opmix_ray.make_config(None), "tree = None: must be a mapping"),
        (lambda: opmix_ray.make_task("file.yaml"), r"config = 'file\.yaml': must be a RunConfig"),
        (lambda: opmix_ray.run(None), r"config = None: must be .*; see help\(opmix_ray\.run\)"),
        (lambda: opmix_ray.prepare(5), "config = 5: must be"),
        (lambda: opmix_ray.train_probes([1]), r"config = \[1\]: must be"),
        (lambda: opmix_ray.discover("x", "y", domains="2"), "domains = '2': must be a whole number"),
        (lambda: opmix_ray.discover("x", "y", domains=2.5), r"domains = 2\.5: must be a whole number"),
        (lambda: opmix_ray.discover("/no", "y"), "^files = /no: no file matches"),
        (lambda: search(steps="10"), "steps = '10': must be a whole number"),
        (lambda: search(settings={"stages.x": 1}), r"settings = stages\.x: no such key"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_in_one_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)
    assert "np.float64" not in str(error.value)


def test_arguments_may_be_numpy_s_and_hints_stay() -> None:
    found = design(np.array(DOMAINS), np.int64(4), lower={"web": np.float32(0.1)}, earlier=({"web": 1},))
    assert len(found) == 4
    assert min(mixture["web"] for mixture in found) >= 0.1
    assert fit(RATIOS.tolist(), LOSSES.tolist(), objective={"a": 1}).weights.tolist() == [1.0, 0.0]
    assert fit(np.tile([0.5, 0.3, 0.2], (12, 1)), strict=False).name == "ridge"
    assert list(inspect.signature(opmix_ray.fit_law).parameters)[:2] == ["ratios", "metrics"]
    with pytest.raises(TypeError, match="propose: missing a required argument: 'prior'"):
        opmix_ray.propose(fit())  # type: ignore[call-arg]


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
