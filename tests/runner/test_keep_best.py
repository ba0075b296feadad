"""`train.keep: best`: `kill -9` and `--resume` end in the same weights, bit for bit; what was kept is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.commands.follow import run_status, status_words
from opmix_ray.errors import UserError
from opmix_ray.runner.check_plan import check_plan
from tests.killing import finish, kill_when, start
from tests.support import TinyRun, read_json


def settings(tiny: TinyRun) -> None:
    """Two stages whose losses rise again before they end: too large a learning rate on one domain."""
    tiny.tree["train"] |= {"keep": "best", "eval_every": 1, "optimizer": {"learning_rate": 0.05}}
    tiny.tree["stages"] = [
        {"name": "one", "steps": 8, "domains": ["code"]},
        {"name": "two", "steps": 8, "domains": ["german"]},
    ]


def outcome(output: Path) -> dict[str, Any]:
    result = read_json(output / "result.json")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "kept": result["kept"],
        "weights": hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "measured": [(row["step"], row["losses"]) for row in rows if row["kind"] == "evaluation"],
    }


def step(output: Path) -> int:
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=-1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_both_stages_it_keeps_the_same_weights(tiny: TinyRun) -> None:
    settings(tiny)
    undisturbed, output = tiny.directory / "undisturbed", tiny.directory / "killed"
    finish(start(tiny, undisturbed))
    expected = outcome(undisturbed)
    assert expected["kept"]["one"] < 8, "else it shows nothing"
    assert expected["kept"]["two"] < 16, "else it shows nothing"
    for number, after in enumerate((7, 15)):  # the checkpoints before are those of steps 6 and 14
        resumed = ["--resume"] if number else []
        kill_when(start(tiny, output, *resumed), output, lambda out, after=after: step(out) >= after)
    finish(start(tiny, output, "--resume"))
    found = outcome(output)
    assert found == expected
    measured = dict(found["measured"])  # of two rows of a step the last
    assert measured[16] == dict(found["measured"][:-1])[found["kept"]["two"]]
    said = status_words(run_status(str(output)))
    assert f"kept      step {found['kept']['one']} in one, step {found['kept']['two']} in two" in said
    assert f"step {found['kept']['two']} in two" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("every", "decide_at", "wrong"), [(None, [], True), (12, [], True), (None, [0.5], False), (5, [], False)]
)
def test_without_a_choice_the_best_cannot_be_kept(
    tiny: TinyRun, every: int | None, decide_at: list[float], wrong: bool
) -> None:
    tiny.tree["train"] |= {"keep": "best", "eval_every": every}
    tiny.tree["stages"] = [{"name": "only", "steps": 12, "decide_at": decide_at}]
    found: list[UserError] = check_plan(tiny.load())
    assert [error.key for error in found] == (["train.eval_every"] if wrong else [])
