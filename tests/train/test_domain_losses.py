"""Sums by domain are exact: the order of sequences, workers and micro-batches and a cut in the middle change no bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from opmix_ray.output.result import DomainCurves, block_length
from opmix_ray.train.workers import DomainLosses

NAMES = ["code", "prose", "none"]
CPU = torch.device("cpu")
STEPS, ROWS = 9, 16


def alone(values: torch.Tensor) -> torch.Tensor:
    return values


def sums(stage_steps: int = 600, start: int = 40) -> DomainLosses:
    return DomainLosses(NAMES, start, stage_steps, CPU, alone)


def made(step: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Domains, nats and targets of a step's sequences."""
    rng = np.random.default_rng(step)
    nats = torch.from_numpy(rng.uniform(0, 700, ROWS))
    return rng.integers(0, 2, ROWS), nats, torch.from_numpy(rng.integers(0, 128, ROWS))


def train(losses: DomainLosses, steps: range, seed: int | None = None) -> None:
    """Add steps whole, or in micro-batches of any size in any order."""
    for step in steps:
        domains, nats, targets = made(step)
        parts = [np.arange(ROWS)]
        if seed is not None:
            rng = np.random.default_rng([seed, step])
            parts = np.split(rng.permutation(ROWS), [3, 4, 11])
        for part in parts:
            losses.add(domains[part], nats[part], targets[part])
        losses.end_step()


def test_order_and_micro_batches_change_no_bit() -> None:
    whole, parts = sums(), sums()
    train(whole, range(STEPS))
    train(parts, range(STEPS), seed=3)
    assert whole.to_dict() == parts.to_dict()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 8])
def test_two_workers_cut_off_anywhere_sum_up_to_the_same(cut: int) -> None:
    """At a cut the first worker gets what both had, the other begins with nothing."""
    whole = sums()
    train(whole, range(STEPS))
    one, two = sums(), sums()
    halves = [{"a": slice(0, ROWS, 2), "b": slice(1, ROWS, 2)}[key] for key in "ab"]

    def both(steps: range) -> None:
        for step in steps:
            domains, nats, targets = made(step)
            for worker, half in zip((one, two), halves, strict=True):
                worker.add(domains[half], nats[half], targets[half])
                worker.end_step()

    def together() -> dict:
        first, second = one.to_dict(), two.to_dict()
        curves = {
            key: (np.array(first["curves"][key]) + np.array(second["curves"][key])).tolist()
            for key in ("nats", "tokens")
        }
        since = (np.array(first["since"]) + np.array(second["since"])).tolist()
        return {"since": since, "curves": first["curves"] | curves}

    both(range(cut))
    kept = json.loads(json.dumps(together()))
    one, two = sums(), sums()
    one.restore(kept, 40 + cut, first=True)
    two.restore(kept, 40 + cut, first=False)
    both(range(cut, STEPS))
    assert together() == whole.to_dict()


def test_blocks_hold_the_steps_they_say() -> None:
    losses = sums()
    train(losses, range(STEPS))
    curves = DomainCurves.from_dict(losses.to_dict()["curves"])
    assert curves.start == 40
    assert curves.steps.tolist() == [43, 46, 49]  # 600 steps in 200 blocks
    domains, nats, targets = (np.concatenate(column) for column in zip(*map(made, (3, 4, 5)), strict=True))
    for d, name in enumerate(NAMES):
        own = domains == d
        assert curves.nats[1, d] == pytest.approx(nats[own].sum(), abs=1e-4), name
        assert curves.tokens[1, d] == targets[own].sum()
    assert curves.losses()[1, 0] == pytest.approx(nats[domains == 0].sum() / targets[domains == 0].sum())
    assert np.isnan(curves.losses()[:, 2]).all()


def test_rows_take_what_came_since_the_last_and_name_what_was_read() -> None:
    losses = sums()
    train(losses, range(2))
    first = losses.take_row()
    train(losses, range(2, STEPS))
    second = losses.take_row()
    assert list(first) == list(second) == ["code", "prose"]
    curves = DomainCurves.from_dict(losses.to_dict()["curves"])
    for d, name in enumerate(["code", "prose"]):
        assert first[name][0] + second[name][0] == curves.nats[:, d].sum()
        assert first[name][1] + second[name][1] == curves.tokens[:, d].sum()
    assert losses.take_row() == {}


def test_a_step_is_known_before_it_ends() -> None:
    losses = sums()
    domains, nats, targets = made(0)
    losses.add(domains, nats, targets)
    own = domains == 1
    assert losses.of_step()["prose"] == pytest.approx((nats[own].sum() / targets[own].sum()).item())
    losses.end_step()
    assert losses.of_step() == {}


def test_a_loss_that_is_no_number_is_not_hidden() -> None:
    losses = sums()
    losses.add(np.array([0, 1]), torch.tensor([torch.nan, 1.0], dtype=torch.float64), torch.tensor([2, 2]))
    assert np.isnan(losses.of_step()["code"])
    assert losses.of_step()["prose"] == 0.5


@pytest.mark.parametrize(
    ("steps", "domains", "length"),
    [(1, 3, 1), (200, 3, 1), (201, 3, 2), (10_000, 16, 50), (10_000, 100, 50), (10_000, 1000, 500)],
)
def test_a_stage_has_few_blocks(steps: int, domains: int, length: int) -> None:
    assert block_length(steps, domains) == length


def test_segments_one_after_the_other_are_one_curve_over_all_their_domains() -> None:
    first, second = sums(), DomainLosses(["new", "code"], 49, 600, CPU, alone)
    train(first, range(STEPS))
    train(second, range(4))
    one, two = (DomainCurves.from_dict(part.to_dict()["curves"]) for part in (first, second))
    joined = one.then(two)
    assert joined.domains == ("code", "prose", "none", "new")
    assert joined.steps.tolist() == [43, 46, 49, 52, 53]
    assert joined.nats[:3, 0].tolist() == one.nats[:, 0].tolist()
    assert joined.nats[3:, 0].tolist() == two.nats[:, 1].tolist()
    assert joined.tokens[3:, 3].tolist() == two.tokens[:, 0].tolist()
    assert not joined.tokens[:3, 3].any()
    assert not joined.tokens[3:, 1].any()
    assert DomainCurves.from_dict(json.loads(json.dumps(joined.to_dict()))).to_dict() == joined.to_dict()
