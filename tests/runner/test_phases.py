"""Runs that go on from runs, domains that change between them, decisions beside training, evaluation by accuracy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.config import RunConfig, with_given
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError
from opmix_ray.output.state import RunState, load_state, sealed
from opmix_ray.runner.runner import run
from opmix_ray.storage import Storage
from tests.support import DOMAINS, ROOT, TinyRun, read_json

ONE = {"name": "one", "steps": 6, "domains": ["code", "german"], "start": {"code": 0.7, "german": 0.3}}
TWO = {"name": "two", "steps": 6, "start": {"code": 0.3, "german": 0.3, "mathematics": 0.4}}
CARRY = {"name": "two", "steps": 4, "start": "carry"}


class Notes(Progress):
    """Keeps the lines about what happens."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def made(
    tiny: TinyRun, output: str, *stages: dict[str, Any], base: Path | None = None, **domains: Any
) -> RunConfig:
    """A configuration with these stages; `domains` replaces domains (None: removes one)."""
    tiny.tree["stages"] = list(stages)
    for name, source in domains.items():
        tiny.tree["data"]["domains"].pop(name, None)
        if source is not None:
            tiny.tree["data"]["domains"][name] = source
    config = tiny.load(output=output)
    return config if base is None else with_given(config, base=str(base))


def state_of(config: RunConfig) -> RunState:
    return load_state(Storage(config.output_uri()))


@pytest.fixture(scope="module")
def first(ray_session: None, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two of three domains."""
    config = made(TinyRun(tiny_data, tmp_path_factory.mktemp("first")), "out", ONE)
    run(config)
    return Path(config.output_uri())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_goes_on_is_a_run_with_one_more_stage(first: Path, tiny: TinyRun) -> None:
    """Weights, moments, schedule, mixture and positions: nothing tells two runs from one but the count of steps."""
    whole, second = made(tiny, "whole", ONE, TWO), made(tiny, "second", TWO, base=first)
    expected, found = run(whole), run(second)
    assert state_of(second).sampler["consumed"] == state_of(whole).sampler["consumed"]
    assert state_of(second).old == state_of(whole).old == {"code": 0.7, "german": 0.3, "mathematics": 0.0}
    assert found["evaluations"][-1]["losses"] == pytest.approx(
        expected["evaluations"][-1]["losses"], abs=1e-4
    )
    assert found["evaluations"][0]["losses"] == pytest.approx(expected["evaluations"][1]["losses"], abs=1e-5)
    assert found["steps"] == 6


def test_decisions_look_at_what_has_come_so_far(first: Path, tiny: TinyRun) -> None:
    """A stage's decision has no weight for a domain that comes later, unless the base has read it."""

    def weights(*stages: dict[str, Any], output: str, base: Path | None = None) -> dict[str, float]:
        seen: list[dict[str, float]] = []

        def decide(config: RunConfig, *_: Any) -> Decision:
            seen.append(config.objective())
            raise UserError("seen")

        with pytest.raises(UserError, match="seen"):
            run(made(tiny, output, *stages, base=base), decide=decide)
        return seen[0]

    only = {"steps": 4, "domains": ["code", "mathematics"], "decide_at": [0.0]}
    two = [{"name": "a", **only}, {"name": "b", "steps": 4}]
    assert weights(*two, output="fresh") == {"code": 0.5, "german": 0.0, "mathematics": 0.5}
    assert weights(*two, output="on", base=first) == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3))


def test_only_a_finished_run_can_be_gone_on_from(first: Path, tiny: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the output of a run"):
        run(made(tiny, "out", CARRY, base=tmp_path / "nothing"))
    shutil.copytree(first, tmp_path / "half")
    state = read_json(tmp_path / "half" / "state.json")
    (tmp_path / "half" / "state.json").write_text(json.dumps(sealed(state | {"finished": False})))
    with pytest.raises(UserError, match="is not finished"):
        run(made(tiny, "out", CARRY, base=tmp_path / "half"))
    assert not (tiny.directory / "out").exists()


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
def test_domains_change_between_runs(first: Path, tiny: TinyRun, tiny_data: Path, tmp_path: Path) -> None:
    """One is renamed, one is revised, one is new: the positions and the old mixture follow."""
    lines = (tiny_data / "code.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "code.jsonl").write_text("".join(lines[5:]))
    notes = Notes()
    config = made(
        tiny, "out", CARRY, base=first,
        german=None,
        deutsch={"path": str(tiny_data / "german.jsonl"), "renamed_from": "german"},
        code={"path": str(tmp_path / "code.jsonl")},
    )  # fmt: skip
    before = load_state(Storage(str(first)))
    run(config.but(seed=11), progress=notes)
    after = state_of(config)
    revised = f"code@{before.read['code']['digest'][:8]}"
    drawn = {name: after.sampler["consumed"][name] for name in ("deutsch", "code", revised)}
    assert drawn["deutsch"] > before.sampler["consumed"]["german"], "goes on"
    assert drawn[revised] == before.sampler["consumed"]["code"], "kept"
    assert drawn["deutsch"] + drawn["code"] == 16 + before.sampler["consumed"]["german"]
    assert after.sampler["orders"]["deutsch"] == [3, "german"], (
        "the order is that of the first run's seed and name"
    )
    assert after.old == pytest.approx({"mathematics": 0, "deutsch": 0.3, "code": 0.7})
    assert "deutsch goes on where german stood" in notes.lines
    assert "code holds other sequences than before: it is read from the beginning" in notes.lines


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_model_from_elsewhere_with_its_old_mixture(first: Path, tiny: TinyRun) -> None:
    tiny.tree["model"] = {"path": str(first / "model"), "autocast": False}
    tiny.tree["base"] = {"mixture": {"code": 0.7, "german": 0.3, "mathematics": 0}}
    stage = CARRY | {"decide_at": [0.0], "search_space": "old_new"}
    config = made(tiny, "out", stage)
    run(config)
    decision = read_json(Path(config.output_uri()) / "decisions/000/decision.json")
    assert list(decision["details"]["components"]) == ["old", "mathematics"]
    assert decision["proposal"]["code"] / decision["proposal"]["german"] == pytest.approx(7 / 3)


OVERLAP = {
    "name": "only",
    "steps": 14,
    "start": "uniform",
    "decide_at": [0.3],
    "overlap": 5,
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_decision_beside_training_is_exact_on_resume(tiny: TinyRun, tmp_path: Path) -> None:
    """Killed while both go on; the result is the undisturbed one, and nobody waited while there was work."""
    tiny.tree["train"]["checkpoint_every"] = 2
    made(tiny, "unused", OVERLAP)
    tiny.write()
    outputs = {name: tmp_path / name for name in ("whole", "killed")}
    start = lambda name, *more: subprocess.Popen(  # noqa: E731
        tiny.command("run", str(tiny.file), "--output", str(outputs[name]), "--json", *more),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert start("whole").wait(400) == 0
    process = start("killed")
    trials = outputs["killed"] / "decisions/000/trials.jsonl"
    while not (trials.exists() and trials.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert start("killed", "--resume").wait(400) == 0
    results = [read_json(output / "result.json") for output in outputs.values()]
    states = [load_state(Storage(str(output))) for output in outputs.values()]
    assert results[0]["final_mixture"] == results[1]["final_mixture"]
    assert states[0].sampler == states[1].sampler
    for a, b in zip(results[0]["evaluations"], results[1]["evaluations"], strict=True):
        assert b["losses"] == pytest.approx(a["losses"], abs=1e-5)
    decision = read_json(outputs["whole"] / "decisions/000/decision.json")
    assert (decision["step"], decision["details"]["effective_step"]) == (4, 9)
    rows = [json.loads(line) for line in (outputs["whole"] / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 14
    if decision["kept"] == "proposal":
        assert results[0]["mixtures"][-1]["step"] == 9


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_questions_are_part_of_reports_and_decisions(
    tiny: TinyRun, tmp_path: Path, ray_session: None
) -> None:
    rows = [{"q": f"{n} + 1 =", "c": [f" {n + 1}", f" {n + 7}"], "a": 0} for n in range(30)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"q": f"{n} + 1 =", "a": str(n + 1)} for n in range(30)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    tiny.tree["evaluation"]["sets"] = {
        "quiz": {"path": str(tmp_path / "quiz.jsonl"), "metric": "choice", "prompt_column": "q",
                 "choices_column": "c", "answer_column": "a"},
        "said": {"path": str(tmp_path / "said.jsonl"), "metric": "exact_match", "prompt_column": "q",
                 "answer_column": "a", "max_new_tokens": 3},
    }  # fmt: skip
    tiny.tree["evaluation"]["weights"] = {"code": 1, "quiz": 1, "said": 2}
    tiny.tree["train"]["workers"] = 2
    config = made(tiny, "out", {"name": "only", "steps": 4, "start": "uniform", "decide_at": [0.5]})
    result = run(config)
    last = result["evaluations"][-1]
    assert set(last["accuracy"]) == {"quiz", "said"}
    assert last["accuracy"]["quiz"] == pytest.approx(1 - last["losses"]["quiz"])
    assert set(last["perplexity"]) == {"code", "german", "mathematics"}
    weights = {"code": 0.25, "quiz": 0.25, "said": 0.5}
    assert last["objective"] == pytest.approx(sum(w * last["losses"][n] for n, w in weights.items()))
    trials = (Path(config.output_uri()) / "decisions/000/trials.jsonl").read_text().splitlines()
    row = json.loads(trials[0])
    assert set(row["nats"]["quiz"]) <= {0.0, 1.0}
    assert row["targets"]["said"] == [1] * 6
    assert "quiz" in (Path(config.output_uri()) / "report.html").read_text()
