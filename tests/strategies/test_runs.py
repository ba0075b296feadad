"""Every strategy from its first step to its last, and after `kill -9` the same as undisturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.data.prepare import prepare
from opmix_ray.output.ledger import TRAINING
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.runner import run
from tests.killing import Moment, finish, kill_when, start
from tests.support import TinyRun, read_json

PARAMETERS = {
    "fixed": {"mixture": {"code": 1, "german": 2, "mathematics": 1}},
    "swarm": {"proxies": 5, "proxy": {"steps": 4, "model": {"hidden_size": 16}}},
    "doremi": {"proxy": {"steps": 4}},
    "mergemix": {"trials": 6, "steps": 3},
    "aioli": {"rounds": 2, "sweep_fraction": 0.5},
    "opmix_published": {"trials": 6},
    "self_distillation": {"max_new_tokens": 4, "rollouts": 2},
}


@pytest.fixture
def tiny(tiny: TinyRun) -> TinyRun:
    tiny.tree["strategies"] = PARAMETERS
    return tiny


def instructions(tiny: TinyRun) -> None:
    """Three domains of prompts and answers."""
    for name, source in tiny.tree["data"]["domains"].items():
        file = tiny.directory / f"{name}.jsonl"
        with file.open("w") as stream:
            for number in range(120):
                row = {"prompt": f"{name} {number}: ", "completion": f"the answer is {number % 7}"}
                stream.write(json.dumps(row) + "\n")
        source.update(path=str(file), prompt_column="prompt", completion_column="completion")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_a_live_strategy_moves_the_mixture_inside_one_segment(tiny: TinyRun) -> None:
    result = run(tiny.load("strategy=aioli", "stages.0.steps=8", "train.log_every=1"))
    rows = [json.loads(line) for line in (tiny.directory / "out/metrics.jsonl").read_text().splitlines()]
    mixtures = [row["mixture"] for row in rows if row["kind"] == "train"]
    assert len(mixtures) == 8
    assert [max(m, key=m.get) for m in mixtures[:3]] == ["code", "german", "mathematics"]  # the first sweep
    assert result["final_mixture"] == mixtures[-1]
    assert result["ledger"]["search"]["tokens"] > 0
    assert result["ledger"]["main"]["tokens"] == 8 * 4 * 32
    assert result["decisions"] == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("strategy", ["swarm", "doremi", "mergemix"])
def test_strategies_with_models_of_their_own_decide(tiny: TinyRun, strategy: str) -> None:
    result = run(tiny.load(f"strategy={strategy}"))
    decision = result["decisions"][0]
    assert decision["step"] == (6 if strategy == "mergemix" else 0)
    assert result["final_mixture"] == pytest.approx(decision["proposal"])
    assert result["ledger"]["probes"]["flops"] > 0
    assert result["ledger"]["main"]["tokens"] == 12 * 4 * 32
    assert (tiny.directory / "out/report.html").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_retraining_begins_every_stage_with_the_same_weights(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 4, "domains": ["code", "german"]},
        {"name": "two", "steps": 4, "domains": ["mathematics"]},
    ]
    result = run(tiny.load("strategy=retrain"))
    assert result["steps"] == 4 + 8
    assert result["ledger"]["main"]["tokens"] == 12 * 4 * 32
    assert (
        sum(entry["sequences"] for entry in result["delivered"].values()) == 8 * 4
    )  # of the last life alone
    single = run(tiny.load("stages.0.steps=8", "stages.0.domains=null", "stages.1.steps=1", output="single"))
    at_eight = next(e for e in single["evaluations"] if e["step"] == 8)
    assert result["evaluations"][-1]["losses"] == pytest.approx(at_eight["losses"], abs=1e-5)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_self_distillation_trains_on_the_students_answers(tiny: TinyRun) -> None:
    instructions(tiny)
    config = tiny.load("strategy=self-distillation", "stages.0.steps=6")
    forecast = Forecast(config, prepare(config))
    result = run(config)
    main, answers, teacher = (result["ledger"][purpose] for purpose in TRAINING)
    assert answers["tokens"] == main["tokens"] > 0
    assert teacher["tokens"] > answers["tokens"]  # the prompt twice, and the demonstration
    spent = sum(part["flops"] for part in (main, answers, teacher))
    assert spent == pytest.approx(
        forecast.training("self-distillation"), rel=0.3
    )  # answers are not known before
    assert spent > 1.5 * forecast.training("uniform")
    assert result["decisions"] == []


def _outcome(output: Path) -> dict[str, Any]:
    result = read_json(output / "result.json")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "mixture": result["final_mixture"],
        "losses": result["evaluations"][-1]["losses"],
        "train": [(row["step"], row["loss"], row["delivered"]) for row in rows if row["kind"] == "train"],
        "flops": [result["ledger"][purpose]["flops"] for purpose in (*TRAINING, "probes", "search")],
    }


def _after_a_checkpoint(output: Path) -> bool:
    file = output / "metrics.jsonl"
    return file.exists() and file.read_text().count('"train"') >= 3


MOMENTS: dict[str, Moment] = {
    "odm": _after_a_checkpoint,
    "aioli": _after_a_checkpoint,
    "merging": _after_a_checkpoint,
    "self-distillation": _after_a_checkpoint,
    "swarm": lambda out: any((out / "decisions/000").glob("trials.jsonl")),
    "doremi": lambda out: (out / "decisions/000/reference/model.json").exists(),
    "mergemix": lambda out: any((out / "decisions/000/experts").glob("*/model.json")),
}


MARKS = {"swarm": [pytest.mark.slow], "aioli": [pytest.mark.slow, pytest.mark.promise]}


# Of those that train models beforehand and those that decide before every step one each is `slow`, the rest `long`.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=MARKS.get(name, [pytest.mark.long])) for name in MOMENTS],
)
def test_killed_and_resumed_is_the_same_as_undisturbed(tiny: TinyRun, strategy: str) -> None:
    if strategy == "self-distillation":
        instructions(tiny)
    tiny.tree["strategy"] = strategy
    undisturbed, output = tiny.directory / "undisturbed", tiny.directory / "killed"
    finish(start(tiny, undisturbed))
    kill_when(start(tiny, output), output, MOMENTS[strategy])
    finish(start(tiny, output, "--resume"))
    found, expected = _outcome(output), _outcome(undisturbed)
    assert [row[::2] for row in found["train"]] == [row[::2] for row in expected["train"]]
    assert [row[1] for row in found["train"]] == pytest.approx(
        [row[1] for row in expected["train"]], abs=1e-5
    )
    assert found["mixture"] == pytest.approx(expected["mixture"], abs=1e-6)
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["flops"] == pytest.approx(expected["flops"])
