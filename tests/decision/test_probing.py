"""Probes trained in parts: all stop together, at the length at which the ranking of candidates has come to rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import ray

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import PreparedDomain, prepare
from opmix_ray.data.store import TokenStore
from opmix_ray.decision.check_probe import check_task
from opmix_ray.decision.probe_ranking import Look, agreement, fixed_candidates
from opmix_ray.decision.probing import Probing, Trained
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.task import load_weights, probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import snapshot
from opmix_ray.model.probe import Probe
from opmix_ray.runner.check_plan import check_plan
from opmix_ray.storage import Storage
from opmix_ray.train.probes import train_probe
from tests.support import TinyRun


class Cut(Exception):
    """The run ends here."""


@dataclass
class Watch(Progress):
    """Counts the trainings that were begun; lets the run end at one of them."""

    ends_at: int = 10**9
    begun: int = 0

    def probe_started(self, name: str) -> None:
        self.begun += 1
        if self.begun == self.ends_at:
            raise Cut


class Place:
    """A decision's ingredients."""

    def __init__(self, tiny: TinyRun, **probe: Any) -> None:
        tiny.tree["probe"] |= {"steps": 8, "settle_every": 2} | probe
        self.config: RunConfig = tiny.load()
        self.prepared = prepare(self.config)
        self.names = list(self.prepared.domains)
        self.old = Mixture.uniform(self.names)
        self.base = snapshot(load_weights(self.config, self.prepared, None))
        self.storage = Storage(str(tiny.directory / "decision"))

    def train(self, watch: Watch | None = None) -> Trained:
        probing = Probing(
            self.config, self.prepared, self.storage, watch or Watch(),
            names=self.names, replayed=self.old, index=0, seed=5,
        )  # fmt: skip
        return probing.train(ray.put(self.base))

    def in_one_go(self, steps: int) -> list[Probe]:
        """The same probes, the check's last, trained here without a stop."""
        tasks = [probe_task(self.config, self.prepared, n, self.old, "decision-0") for n in self.names]
        tasks.append(check_task(self.config, self.prepared, self.names, self.old, "decision-0"))
        settings = self.config.probe.model_copy(update={"steps": steps})
        return [train_probe(replace(task, probe=settings), self.base) for task in tasks]


def assert_same(found: Trained, expected: list[Probe]) -> None:
    assert found.check is not None
    for mine, theirs in zip([*found.probes, found.check], expected, strict=True):
        assert (mine.name, mine.losses) == (theirs.name, theirs.losses)
        assert (mine.tokens, mine.flops, mine.measured) == (theirs.tokens, theirs.flops, theirs.measured)
        for layer, pair in mine.factors.items():
            assert all(map(np.array_equal, pair, theirs.factors[layer]))


@pytest.mark.slow
def test_all_probes_stop_together_and_are_what_they_would_be_at_that_length(
    tiny: TinyRun, ray_session: None
) -> None:
    place = Place(tiny, settle=0.3)
    found = place.train()
    assert found.steps == 4, found.length(place.config)  # the first length with one to compare it with
    assert_same(found, place.in_one_go(4))
    assert found.length(place.config)["agreement"].keys() == {"4"}
    looks = sum(look.tokens for look in found.looks)
    assert looks == 2 * 12 * 3 * 4 * place.prepared.seq_len  # lengths, candidates, sets, sequences
    probes = [*found.probes, *([found.check] if found.check else [])]
    assert sum(cost.tokens for cost in found.costs()) == looks + sum(probe.tokens for probe in probes)
    assert not place.storage.exists("lengths")
    again = Watch()
    assert_same_length(place.train(again), found)
    assert again.begun == 0


def assert_same_length(one: Trained, other: Trained) -> None:
    assert (one.steps, one.looks) == (other.steps, other.looks)


@pytest.mark.slow
def test_where_the_ranking_does_not_come_to_rest_all_steps_are_made(tiny: TinyRun, ray_session: None) -> None:
    tiny.tree["train"]["optimizer"]["learning_rate"] = 0.5  # it does not learn: every length is another model
    place = Place(tiny, settle=0.999)
    found = place.train()
    assert found.steps == 8
    assert [look.steps for look in found.looks] == [2, 4, 6]
    assert all(value < 0.999 for value in found.length(place.config)["agreement"].values())
    assert_same(found, place.in_one_go(8))


@pytest.mark.parametrize(
    "ends_at", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(9, marks=pytest.mark.slow)]
)
def test_cut_off_it_goes_on_where_it_was(tiny: TinyRun, ray_session: None, ends_at: int) -> None:
    """In the first part, in the second, and when the check is measured; 4 probes, so 4 begin each part."""
    place = Place(tiny, settle=0.3)
    with pytest.raises(Cut):
        place.train(Watch(ends_at))
    watch = Watch()
    found = place.train(watch)
    assert found.steps == 4
    assert_same(found, place.in_one_go(4))
    assert watch.begun <= 9 - (ends_at - 1) // 4 * 4  # whole parts are not trained again


@pytest.mark.slow
def test_a_fixed_length_is_not_looked_at(tiny: TinyRun, ray_session: None) -> None:
    place = Place(tiny, settle=None, steps=2)
    found = place.train()
    assert (found.steps, found.looks) == (2, [])
    assert not place.storage.exists("lengths.json")
    assert_same(found, place.in_one_go(2))


class Unreadable(PreparedDomain):
    """A domain whose sequences cannot be read any more."""

    def train(self) -> TokenStore:
        raise RuntimeError("its disk is gone")


@pytest.mark.slow
def test_a_probe_that_fails_for_good_is_left_out_of_the_ranking(tiny: TinyRun, ray_session: None) -> None:
    place = Place(tiny, settle=0.3, new_share=1.0)
    domains = dict(place.prepared.domains)
    domains["german"] = Unreadable(**vars(domains["german"]))
    place.prepared = replace(place.prepared, domains=domains)
    found = place.train()
    assert found.lost == {"german": "RuntimeError: its disk is gone"}
    assert found.check is None  # it reads every domain
    assert [probe.name for probe in found.probes] == ["code", "mathematics"]
    assert {len(probe.losses) for probe in found.probes} == {found.steps}
    assert found.looks


def test_agreement_is_that_of_ranks_and_a_diverged_probe_agrees_with_nothing() -> None:
    one = Look(5, [1.0, 2.0, 3.0, 4.0], 0, 0.0, 0.0)
    assert agreement(one, replace(one, objectives=[10.0, 20.0, 30.0, 4000.0])) == pytest.approx(1)
    assert agreement(one, replace(one, objectives=[4.0, 3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert agreement(one, replace(one, objectives=[1.0, 2.0, 3.0, float("nan")])) == 0
    assert agreement(one, replace(one, objectives=[1.0, 1.0, 1.0, 1.0])) == 0


def test_a_length_without_two_rankings_is_refused(tiny: TinyRun) -> None:
    tiny.tree["probe"] |= {"steps": 4, "settle": 0.9, "settle_every": 2}
    (error,) = check_plan(tiny.load())
    assert error.key == "probe.settle_every"
    tiny.tree["probe"]["steps"] = 5
    assert check_plan(tiny.load()) == []


def test_candidates_are_the_same_at_every_length() -> None:
    weights = fixed_candidates(6, seed=3)
    assert np.array_equal(weights, fixed_candidates(6, seed=3))
    assert not np.array_equal(weights, fixed_candidates(6, seed=4))
    assert weights.sum(axis=1) == pytest.approx(1)
