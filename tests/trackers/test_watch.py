"""What a run does is in TensorBoard's event files under stable names, once, also after a resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opmix_ray.output.state import METRICS, RunState, load_state, read_config
from opmix_ray.runner.runner import _done
from opmix_ray.storage import Storage
from opmix_ray.trackers import Tracking, of_costs, of_row
from tests.trackers.conftest import scalars


def state_of(run: Storage) -> RunState:
    return load_state(run)


def recorded(run: Storage) -> dict[str, dict[int, float]]:
    return scalars(Path(run.path("tensorboard")))


def test_a_row_becomes_shares_and_losses() -> None:
    row = {"kind": "train", "step": 4, "loss": 2.0, "learning_rate": 0.1, "tokens_per_second": 9.0,
           "delivered": {"a": 3, "b": 1}}  # fmt: skip
    assert of_row(row, {}) == {
        "train/loss": 2.0, "train/learning_rate": 0.1, "train/tokens_per_second": 9.0,
        "delivered/a": 0.75, "delivered/b": 0.25,
    }  # fmt: skip
    row = {"kind": "evaluation", "step": 4, "losses": {"a": 2.0, "b": 4.0}, "perplexity": {"a": float("inf")},
           "bits_per_byte": {}}  # fmt: skip
    assert of_row(row, {"a": 0.75, "b": 0.25}) == {
        "eval/loss/a": 2.0,
        "eval/loss/b": 4.0,
        "eval/objective": 2.5,
    }


def test_costs_are_named_by_purpose_and_unit() -> None:
    assert of_costs({"main": {"tokens": 5, "flops": 0.0}}, 0.5) == {
        "cost/main/tokens": 5.0,
        "cost/overhead": 0.5,
    }


def test_everything_is_recorded_once_however_often_a_run_is_resumed(run: Storage) -> None:
    config, state = read_config(run), state_of(run)
    state.done = 1
    for _ in range(2):
        tracked = Tracking(config, run)
        tracked.replay(**_done(run, state))
        for row in json.loads(
            "[" + ",".join(run.lines(METRICS)[-2:]) + "]"
        ):  # a worker that starts again says them again
            tracked.row(row)
        tracked.costs(state.step, state.ledger, 0.25)
        tracked.close()
    assert len(run.names("tensorboard")) == 1
    found = recorded(run)
    rows = [json.loads(line) for line in run.lines(METRICS)]
    trained = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    assert found["train/loss"] == pytest.approx(trained)
    assert found["decision/changed"].keys() == {20, 40}
    assert found["cost/overhead"] == {60: 0.25}
    assert set(config.data.domains) == {name.split("/")[1] for name in found if name.startswith("mixture/")}
    assert {name.split("/")[0] for name in found} == {
        "train",
        "delivered",
        "eval",
        "mixture",
        "decision",
        "cost",
    }


def test_names_are_documented(run: Storage) -> None:
    tracked = Tracking(read_config(run), run)
    tracked.replay(**_done(run, replace(load_state(run), done=1)))
    tracked.costs(60, state_of(run).ledger, 0.1)
    tracked.close()
    text = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    for name in recorded(run):
        first, second = name.split("/")[:2]
        known = [
            f"`{name}`",
            f"`{first}/DOMAIN`",
            f"`{first}/{second}/SET`",
            f"`{first}/{second}/DOMAIN`",
            f"`{first}/PURPOSE/UNIT`",
        ]
        assert any(each in text for each in known), name
