"""Merging: what a stage learned is taken back as far as the held-out sets ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.plan import start_mixture
from opmix_ray.runner.runner import run
from opmix_ray.strategies.base import strategy_of
from opmix_ray.strategies.online import PARTS, MergingModule
from tests.model.tiny_models import tiny as tiny_model
from tests.support import TinyRun


def trained(tiny: TinyRun) -> tuple[MergingModule, torch.optim.Optimizer]:
    """A module that has made a step."""
    torch.manual_seed(0)
    module = MergingModule(tiny_model("llama"), tiny.load("strategy=merging"))
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-2)
    ids = torch.arange(24).reshape(2, 12) % 60
    module(ids, torch.ones_like(ids, dtype=torch.bool))[0].backward()
    optimizer.step()
    return module, optimizer


def weights(module: MergingModule) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.model.parameters()])


@pytest.mark.parametrize("best", [0.1, 0.3, 1.0])
def test_the_weights_go_back_to_where_the_held_out_sets_are_best(tiny: TinyRun, best: float) -> None:
    fresh = MergingModule(tiny_model("llama"), tiny.load("strategy=merging"))
    module, _ = trained(tiny)
    torch.manual_seed(0)
    first, last = weights(MergingModule(tiny_model("llama"), fresh._config)), weights(module)
    goal = first + best * (last - first)
    asked = []

    def held_out() -> dict[str, float]:
        asked.append(1)
        return dict.fromkeys(["code", "german", "mathematics"], float((weights(module) - goal).norm()))

    module.end_stage(held_out, {})
    assert len(asked) == len(PARTS)
    assert torch.allclose(weights(module), goal, atol=1e-6)
    assert (last - first).norm() > 1e-2


def test_where_nothing_is_gained_by_going_back_the_stage_ends_as_it_was_trained(tiny: TinyRun) -> None:
    module, _ = trained(tiny)
    last = weights(module)
    module.end_stage(lambda: dict.fromkeys(["code", "german", "mathematics"], 1.0), {})
    assert torch.equal(weights(module), last)


def test_the_first_weights_are_in_a_checkpoint_until_the_stage_ends(tiny: TinyRun) -> None:
    module, optimizer = trained(tiny)
    module.keep(optimizer)
    other = MergingModule(tiny_model("llama"), module._config)
    again = torch.optim.AdamW(other.model.parameters(), lr=1e-2)
    again.load_state_dict(optimizer.state_dict())
    other.model.load_state_dict(module.model.state_dict())
    other.recall(again)
    assert all(torch.equal(a, b) for a, b in zip(other._first, module._first, strict=True))
    module.end_stage(lambda: dict.fromkeys(["code", "german", "mathematics"], 1.0), {})
    module.keep(optimizer)
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_a_stage_reads_what_is_new_alone(tiny: TinyRun) -> None:
    config = tiny.load("strategy=merging", "data.seq_len=32")
    tokens = {"code": 900, "german": 100, "mathematics": 400}
    found, _ = start_mixture(config, config.stages[0], Mixture({"code": 1.0}), tokens, {"code": 300.0}, 32)
    assert found.shares == pytest.approx({"code": 0, "german": 0.2, "mathematics": 0.8})


def test_workers_that_share_the_model_are_refused(tiny: TinyRun) -> None:
    config = tiny.load("strategy=merging", "train.strategy=fsdp2", "train.workers=2")
    with pytest.raises(UserError, match=r"train\.strategy = fsdp2: `merging` keeps the whole weights"):
        strategy_of(config).plan(config)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_a_merged_run_forgets_less_than_a_sequential_one_and_is_counted(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 20, "domains": ["code"]},
        {"name": "two", "steps": 20, "domains": ["code", "german"], "start": "uniform"},
    ]
    config = tiny.load("strategy=merging", "train.optimizer.learning_rate=0.02")
    spent = Forecast(config, prepare(config))
    results: dict[str, Any] = {}
    for name in ("merging", "sequential"):
        results[name] = run(config.but(strategy=name, output=str(tiny.directory / name)))
    last = {name: result["evaluations"][-1]["losses"] for name, result in results.items()}
    assert last["merging"]["code"] < last["sequential"]["code"] - 0.02
    ledger = results["merging"]["ledger"]
    assert ledger["search"]["flops"] > 0
    assert ledger["search"]["flops"] == pytest.approx(spent.searching("merging"))
    assert ledger["main"]["tokens"] == results["sequential"]["ledger"]["main"]["tokens"]
    rows = [json.loads(line) for line in (tiny.directory / "merging/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [0, 20, 40]
