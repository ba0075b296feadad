"""`kill -9` at any moment, then `--resume`: the same weights, bit for bit, and mixture, batches and losses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.killing import Moment, finish, kill_when, start
from tests.support import TinyRun, read_json


def _rows(output: Path, name: str) -> int:
    file = output / name
    return file.read_text().count("\n") if file.exists() else 0


def _step(output: Path) -> int:
    lines = (output / "metrics.jsonl").read_text().splitlines() if (output / "metrics.jsonl").exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=-1)


MOMENTS: dict[str, Moment] = {
    "in the first segment, after a checkpoint": lambda out: _step(out) >= 4,
    "while probes are trained": lambda out: any((out / "decisions/000/probes").glob("*/probe.json")),
    "in the middle of the search": lambda out: _rows(out, "decisions/000/trials.jsonl") >= 2,
    "when the decision is made": lambda out: (out / "decisions/000/decision.json").exists(),
    "in the second segment": lambda out: _step(out) >= 8,
}


def _outcome(output: Path) -> dict:
    result = read_json(output / "result.json")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "mixture": result["final_mixture"],
        "losses": [e["losses"] for e in result["evaluations"]],
        "delivered": [row["delivered"] for row in rows if row["kind"] == "train"],
        "train": [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"],
        "domains": [list(row["domains"].items()) for row in rows if row["kind"] == "train"],
        "curves": read_json(output / "state.json")["curves"],
        "ratios": (output / "decisions/000/ratios.csv").read_text(),
        "weights": hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest(),
    }


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(start(TinyRun(tiny_data, directory), directory / "out"))
    return _outcome(directory / "out")


def _assert_same(found: dict, expected: dict) -> None:
    assert found["weights"] == expected["weights"], "bit for bit"
    assert found["delivered"] == expected["delivered"]
    assert found["domains"] == expected["domains"]
    assert found["curves"] == expected["curves"]
    assert found["ratios"] == expected["ratios"]
    assert found["mixture"] == pytest.approx(expected["mixture"], abs=1e-6)
    assert [step for step, _ in found["train"]] == [step for step, _ in expected["train"]]
    assert [loss for _, loss in found["train"]] == pytest.approx(
        [loss for _, loss in expected["train"]], abs=1e-5
    )
    for mine, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(3600)
def test_killed_in_the_middle_of_the_search(tiny: TinyRun, undisturbed: dict) -> None:
    output = tiny.directory / "out"
    kill_when(start(tiny, output), output, MOMENTS["in the middle of the search"])
    done = (output / "decisions/000/trials.jsonl").read_text().splitlines()
    finish(start(tiny, output, "--resume"))
    _assert_same(_outcome(output), undisturbed)
    for line in done[:-1]:  # the last one may have been cut off
        assert line in (output / "decisions/000/trials.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_five_moments_in_one_run(tiny: TinyRun, undisturbed: dict) -> None:
    """One run that dies five times, each time at another moment, ends like one that never did."""
    output = tiny.directory / "out"
    for number, moment in enumerate(MOMENTS.values()):
        kill_when(start(tiny, output, *(["--resume"] if number else [])), output, moment)
    finish(start(tiny, output, "--resume"))
    _assert_same(_outcome(output), undisturbed)
