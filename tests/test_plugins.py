"""A law, an objective, a strategy and a file format from an installed package, used by name."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from opmix_ray import plugins
from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.runner.check_plan import check_plan
from opmix_ray.runner.plan import in_stage
from opmix_ray.sources.source import iter_documents, open_source, validate_sources
from opmix_ray.strategies.base import Strategy, strategy_names, strategy_of
from tests.support import ROOT, TinyRun, opmix


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that examples/plugin is installed into."""
    place, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run(
        [*command, "--target", str(place), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package on the path of this process and of those it starts."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    _forget()
    yield site
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    invalidate_caches()
    plugins._points.cache_clear()
    plugins._load.cache_clear()


def test_names_are_known_only_where_the_package_is_installed(installed: Path) -> None:
    assert {kind: plugins.names(kind) for kind in plugins.KINDS} == {
        "laws": ["entropy"],
        "objectives": ["by-group", "worst"],
        "strategies": ["worst-first"],
        "sources": ["paragraphs"],
    }
    assert "worst-first" in strategy_names()


def test_the_law_fits_and_travels_as_json(installed: Path) -> None:
    ratios = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    losses = (
        3 + ratios @ np.array([[0.5], [-0.2], [0.1]]) + 0.3 * (ratios * np.log(ratios)).sum(axis=1)[:, None]
    )
    law = fit_law(ratios, losses, domains=["a", "b", "c"], metric_names=["m"], law="entropy")
    assert law.quality["objective"]["r2"] > 0.999
    again = FittedLaw.from_dict(json.loads(json.dumps(law.to_dict())))
    assert again.predict(ratios) == pytest.approx(law.predict(ratios))
    at = ratios[:1]
    step = np.array([[1e-6, -1e-6, 0]])
    slope = (law.objective(at + step) - law.objective(at - step)) / 2e-6
    assert slope == pytest.approx(law.gradient(at)[0, 0] - law.gradient(at)[0, 1], rel=1e-3)


def test_the_objective_weighs_groups(installed: Path, tiny: TinyRun) -> None:
    for name in ("code", "german"):
        tiny.tree["data"]["domains"][name]["group"] = "prose"
    tiny.tree["evaluation"]["objective"] = "by-group"
    assert tiny.load().objective() == pytest.approx({"code": 0.25, "german": 0.25, "mathematics": 0.5})


def test_an_objective_may_see_the_losses(installed: Path, tiny: TinyRun) -> None:
    tiny.tree["evaluation"]["objective"] = "worst"
    config = tiny.load()
    assert check_plan(config) == []
    objective = pickle.loads(cloudpickle.dumps(config.objective_of({})))
    losses = np.array([[2.0, 3.0, 1.0], [4.0, 3.0, 1.0]])
    assert objective.sets == ("code", "german", "mathematics")
    assert objective.value(losses).tolist() == [3.0, 4.0]
    assert objective.gradient(losses) == pytest.approx(np.array([[0, 1, 0], [1, 0, 0]]), abs=1e-9)
    assert objective.weights_at({"code": 2.0, "german": 3.0, "mathematics": 1.0})["german"] == pytest.approx(
        1
    )
    assert objective.unit == "worst"
    assert in_stage(config, 0) is config


def test_the_format_is_read(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("one\ntwo\n\n\nthree\n")
    source = SourceConfig(path=str(file), format="paragraphs")
    assert [document.text for document in iter_documents(source, "notes")] == ["one\ntwo", "three"]
    with pytest.raises(
        UserError, match=r"notes.txt: data.domains.notes.text_column: the file has no column 'body'"
    ):
        list(iter_documents(source.but(text_column="body"), "notes"))


def test_another_version_of_the_code_is_another_way_to_read(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("one\n\n\ntwo\n")
    source = SourceConfig(path=str(file), format="paragraphs")
    before = open_source(source, "d").formats()
    assert open_source(source, "d").formats() == before
    code = next(path for path in plugins.code("sources", "paragraphs") if "paragraphs" in path.read_text())
    content = code.read_text()
    code.write_text(content + "\n# a newer version\n")
    after = open_source(source, "d").formats()
    code.write_text(content)
    assert [kind for kind, _ in after] == [kind for kind, _ in before] == ["paragraphs"]
    assert after != before


@pytest.mark.slow
def test_a_run_with_all_of_them(installed: Path, tiny: TinyRun) -> None:
    tiny.tree |= {"strategy": "worst-first", "proposal": {"law": "entropy"}}
    tiny.tree["evaluation"]["objective"] = "by-group"
    notes = tiny.directory / "notes.txt"
    notes.write_text(
        "\n\n".join(f"Note {i}: there is nothing new about the number {i} today." for i in range(300))
    )
    tiny.tree["data"]["domains"]["notes"] = {"path": str(notes), "format": "paragraphs"}
    done = subprocess.run(
        tiny.command("run", str(tiny.write()), "--output", str(tiny.directory / "out"), "--json"),
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "has the greatest loss" in result["decisions"][0]["reason"]
    assert result["mixtures"][0]["mixture"] != result["final_mixture"]


def test_a_strategy_is_the_same_class_as_ours(installed: Path, tiny: TinyRun) -> None:
    strategy = strategy_of(tiny.load("strategy=worst-first"))
    assert isinstance(strategy, Strategy)
    assert strategy.plan(tiny.load("strategy=worst-first")).stages[0].decide_at == [0.5]
    assert strategy.callback(tiny.load(), {}) is None


OUTSIDER = '''
"""A strategy of somebody else: it plans, starts, decides, acts while the model is trained, and says what that costs."""

from dataclasses import dataclass

from opmix_ray import Costs, Decision, Making, Mixture, Moment, Planned
from opmix_ray import RunConfig, Strategy, TrainingCallback, UserError
from opmix_ray.config import StageConfig

LOOKS = (2, 8)  # steps before which it measures


@dataclass(frozen=True)
class Sway(TrainingCallback):
    """After each look a tenth of the way to what the model knows least."""

    def measures(self, memory: dict, moment: Moment) -> bool:
        return moment.done in LOOKS

    def steer(self, memory: dict, moment: Moment) -> Mixture | None:
        if moment.held_out is None:
            return None
        memory["looks"] = memory.get("looks", 0) + 1
        worst = max(moment.mixture.domains, key=moment.held_out.get)
        return Mixture({name: 0.9 * share + 0.1 * (name == worst) for name, share in moment.mixture.items()})


class Sways(Strategy):
    def check(self, config: RunConfig) -> None:
        if len(config.data.domains) < 2:
            raise UserError("has nothing to sway between", key="data.domains", remedy="add a domain")

    def changes(self, config: RunConfig) -> dict:
        return {"train": {"log_every": 1}}

    def start(self, config: RunConfig, stage: StageConfig, old: Mixture | None, tokens: dict) -> Mixture:
        return Mixture({name: 3.0 if place == 0 else 1.0 for place, name in enumerate(tokens)})

    def make(self, making: Making) -> Decision:
        making.add("probes", 10.0, 2e6, 0.5)
        return making.decision(Mixture.proportional(making.tokens), "it goes back to what there is")

    def callback(self, config: RunConfig, caps: dict) -> TrainingCallback:
        return Sway(caps, config.objective())

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        return 2e6

    def live_cost(self, config: RunConfig, domains: int, costs: Costs) -> float:
        return len(LOOKS) * costs.look
'''


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of one file with a strategy, as pip would install it."""
    (tmp_path / "outsider.py").write_text(OUTSIDER)
    notes = tmp_path / "outsider-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text("[opmix_ray.strategies]\nsways = outsider:Sways\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    _forget()
    yield
    monkeypatch.undo()
    _forget()


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("outsider")
def test_a_strategy_in_one_file_of_somebody_else_works_wherever_ours_do(tiny: TinyRun) -> None:
    def said(*arguments: object) -> str:
        done = opmix(*map(str, arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout

    tiny.tree["strategy"] = "sways"
    file, output, table = tiny.write(), tiny.directory / "out", tiny.directory / "table"
    planned = json.loads(said("validate", file, "--json"))["cost"]["flops"]["deciding"]
    result = json.loads(said("run", file, "-o", output, "--json"))
    mixtures = [(mixture["step"], mixture["why"]) for mixture in result["mixtures"]]
    assert mixtures == [(0, "start of the stage"), (6, "sways"), (6, "decision 0"), (12, "sways")]
    first, *_, last = [mixture["mixture"] for mixture in result["mixtures"]]
    assert first == pytest.approx({"code": 0.6, "german": 0.2, "mathematics": 0.2})
    assert last != first
    spent = result["ledger"]
    assert spent["probes"]["flops"] == 2e6
    assert spent["search"]["flops"] > 0, "what it measured while the model was trained"
    assert spent["probes"]["flops"] + spent["search"]["flops"] == pytest.approx(planned, rel=0.01)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "train" for row in rows) == 12, "it asked for a row a step"
    assert "it goes back to what there is" in (output / "report.html").read_text()
    said("report", output)
    content = json.loads(
        said(
            "compare",
            file,
            "-o",
            table,
            "--seeds",
            1,
            "--strategies",
            "uniform,sways",
            "--equal-compute",
            "--json",
        )
    )
    uniform, sways = content["rows"]
    assert (sways["strategy"], sways["steps"] < uniform["steps"]) == ("sways", True)
    assert "sways" in (table / "compare.html").read_text()
    tiny.tree["data"]["domains"] = {"code": tiny.tree["data"]["domains"]["code"]}
    refused = opmix("validate", str(tiny.write()))
    assert (refused.returncode, "has nothing to sway between" in refused.stderr) == (2, True)


def test_what_is_no_strategy_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: TinyRun) -> None:
    wrong = EntryPoint(name="mine", value="opmix_ray.mixture:Mixture", group="opmix_ray.strategies")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [wrong] if group == wrong.group else [])
    _forget()
    with pytest.raises(UserError, match="strategy = mine: is registered, but is no strategy"):
        strategy_of(tiny.load("strategy=mine"))
    monkeypatch.undo()
    _forget()


def test_the_example_imports_public_names_only() -> None:
    """What is in `__all__` of a package of ours; everything else may move."""
    imported = [
        (node.module or "", alias.name)
        for file in (ROOT / "examples" / "plugin").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "").startswith("opmix_ray")
        and not (node.module or "").startswith("opmix_ray_example")
    ]
    assert len(imported) >= 5
    assert {module for module, _ in imported} <= {"opmix_ray", "opmix_ray.laws", "opmix_ray.config"}
    assert [(module, name) for module, name in imported if name not in import_module(module).__all__] == []


def test_without_the_package_its_names_are_unknown(tiny: TinyRun) -> None:
    tiny.tree["proposal"] = {"law": "entropy"}
    tiny.tree["evaluation"]["objective"] = "by-group"
    tiny.tree["data"]["domains"]["code"]["format"] = "paragraphs"
    config = tiny.load()
    said = "\n".join(str(error) for error in [*check_plan(config), *validate_sources(config)])
    assert "proposal.law = entropy: no such law" in said
    assert "evaluation.objective = by-group: no such objective, and no installed package brings it" in said
    assert "data.domains.code.format = paragraphs: no such format; known: auto, jsonl" in said


def test_what_cannot_be_imported_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint(name="mine", value="no_such_module_anywhere:thing", group="opmix_ray.laws")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken] if group == broken.group else [])
    _forget()
    with pytest.raises(UserError, match=r"opmix_ray.laws = mine .*cannot be imported: ModuleNotFoundError"):
        plugins.find("laws", "mine")
    other = EntryPoint(name="mine", value="somewhere.else:thing", group="opmix_ray.laws")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken, other])
    _forget()
    with pytest.raises(UserError, match=r"mine: is registered twice"):
        plugins.names("laws")
    monkeypatch.undo()
    _forget()
