"""The probes of a decision: trained once, found again, and done without where one fails for good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from opmix_ray.config import RunConfig
from opmix_ray.counts.ceilings import DataResponse
from opmix_ray.data.prepare import PreparedDomain, prepare
from opmix_ray.data.store import TokenStore
from opmix_ray.decision.budget import decision_size
from opmix_ray.decision.make import Situation, make_decision
from opmix_ray.decision.old_part import choose_components, probe_data
from opmix_ray.decision.probing import Probing, Trained, can_do_without, check_task, holding
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.task import load_weights, probe_task
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import snapshot
from opmix_ray.model.probe import WEIGHTS, Probe
from opmix_ray.output.ledger import Ledger
from opmix_ray.runner.forecast import Forecast
from opmix_ray.storage import Storage
from opmix_ray.train.probes import train_probe
from opmix_ray.trials.space import Components
from tests.support import TinyRun, one_thread


class Seen(Progress):
    """Counts the trainings that were begun."""

    begun = 0

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def probe_started(self, name: str) -> None:
        self.begun += 1


class Place:
    """A decision's ingredients."""

    def __init__(self, tiny: TinyRun, **probe: Any) -> None:
        tiny.tree["probe"] |= {"steps": 3} | probe
        self.config: RunConfig = tiny.load()
        self.prepared = prepare(self.config)
        self.names = list(self.prepared.domains)
        self.chosen = choose_components("simplex", None, Mixture.uniform(self.names))
        self.base = snapshot(load_weights(self.config, self.prepared, None))
        self.storage = Storage(str(tiny.directory / "decision"))

    def train(self, watch: Seen | None = None) -> Trained:
        probing = Probing(
            self.config, self.prepared, self.storage, watch or Seen(),
            chosen=self.chosen, index=0, sequences=LOOKED_AT,
        )  # fmt: skip
        return probing.train(ray.put(self.base))

    def in_one_go(self) -> list[Probe]:
        """The same probes, the check's last, trained here."""
        tasks = [
            probe_task(self.config, self.prepared, n, self.chosen.replayed, "decision-0") for n in self.names
        ]
        tasks.append(
            check_task(self.config, self.prepared, self.chosen, "decision-0", LOOKED_AT, self.config.probe)
        )
        with one_thread():  # as many as a probe's worker has
            return [train_probe(task, self.base) for task in tasks]


LOOKED_AT = 2  # sequences of each set, as candidates do


def assert_same(found: Trained, expected: list[Probe]) -> None:
    assert found.check is not None
    for mine, theirs in zip([*found.probes, found.check], expected, strict=True):
        assert (mine.name, mine.losses) == (theirs.name, theirs.losses)
        assert (mine.tokens, mine.flops, mine.measured) == (theirs.tokens, theirs.flops, theirs.measured)
        for layer, pair in mine.factors.items():
            assert all(map(np.array_equal, pair, theirs.factors[layer]))


def test_probes_are_trained_once_and_found_where_they_lie(tiny: TinyRun, ray_session: None) -> None:
    place = Place(tiny)
    found = place.train()
    assert_same(found, place.in_one_go())
    assert {len(probe.losses) for probe in found.costs()} == {3}
    assert found.check is not None
    looks = LOOKED_AT * place.prepared.seq_len * len(found.check.measured)
    assert found.check.tokens == found.probes[0].tokens + looks
    again = Seen()
    assert_same(place.train(again), found.costs())
    assert again.begun == 0
    file = tiny.directory / "decision" / "probes" / place.names[0] / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert_same(place.train(again), found.costs())
    assert again.begun == 1
    assert again.said == [f"probe {place.names[0]} has a damaged {WEIGHTS} and is trained again"]


class Unreadable(PreparedDomain):
    """A domain whose sequences cannot be read any more."""

    def train(self) -> TokenStore:
        raise RuntimeError("its disk is gone")


@pytest.mark.slow
def test_a_probe_that_fails_for_good_is_left_out(tiny: TinyRun, ray_session: None) -> None:
    place = Place(tiny, new_share=1.0)
    domains = dict(place.prepared.domains)
    domains["german"] = Unreadable(**vars(domains["german"]))
    place.prepared = replace(place.prepared, domains=domains)
    found = place.train()
    assert found.lost == {"german": "RuntimeError: its disk is gone"}
    assert found.check is None  # it reads every domain
    assert [probe.name for probe in found.probes] == ["code", "mathematics"]


OLD = Mixture({"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05})


def probe(name: str) -> Probe:
    data = probe_data(name, OLD, 0.9).shares
    return Probe(name, data, factors={}, scale=1.0, rank=1, alpha=1.0, target_modules=[])


def test_a_lost_domain_keeps_its_share_in_every_candidate_and_the_mixture_in_force_is_one() -> None:
    held = {"b": 0.3, "d": 0.05}
    probes = [holding(probe(name), held) for name in ("a", "c")]
    data = np.array([[each.data[name] for name in OLD] for each in probes])
    components = Components(("a", "c"), tuple(OLD), data)
    assert data.sum(axis=1) == pytest.approx(1)
    for weights in ([1.0, 0.0], [0.2, 0.8], [0.5, 0.5]):
        ratios = components.ratios(np.array(weights))
        assert ratios[[1, 3]] == pytest.approx([0.3, 0.05])
    found = components.ratios(components.weights_for(OLD))
    assert found == pytest.approx(list(OLD.shares.values()), abs=1e-6)


def test_there_must_be_two_probes_left_and_none_of_them_may_be_the_old_mixtures() -> None:
    names = list(OLD)
    assert can_do_without({}, ["a"], OLD)
    assert can_do_without({"b": "", "d": ""}, names, OLD)
    assert not can_do_without({"a": "", "b": "", "c": ""}, names, OLD)
    assert not can_do_without({"old": ""}, ["old", "a", "b"], OLD)
    assert not can_do_without({"a": ""}, ["a", "b", "c"], Mixture({"a": 1.0, "b": 0.0, "c": 0.0}))


def test_a_pretrained_model_is_asked_what_it_knows_and_it_is_counted(
    tiny: TinyRun, ray_session: None
) -> None:
    fresh = Place(tiny)
    load_weights(fresh.config, fresh.prepared, None).save_pretrained(tiny.directory / "base")
    tiny.tree["model"] = {"path": str(tiny.directory / "base"), "autocast": False}
    tiny.tree["stages"] = [{"name": "more", "steps": 60, "start": "uniform", "decide_at": [0.0]}]
    tiny.tree["train"]["batch_size"] = 4
    tiny.tree |= {"probe": {}, "search": {"budget": 0.05}}
    config = tiny.load(output="asked")
    prepared = prepare(config)
    names = list(prepared.domains)
    size = decision_size(config, config.stages[0], len(names))
    assert size.probe is None
    assert size.asked >= 4
    situation = Situation(
        index=0, step=0, stage="more", space="simplex", current=Mixture.uniform(names), model=None,
        tokens_left=60 * 4 * prepared.seq_len, tokens_used={},
    )  # fmt: skip
    storage, ledger = Storage(str(tiny.directory / "asked")), Ledger()
    decision = make_decision(config, prepared, storage, situation, Progress(), ledger)
    search = decision.details["cost"]["search"]
    assert search["tokens"] == size.asked * len(names) * prepared.seq_len
    trained = 3 * 60 * 4 * prepared.seq_len
    assert search["tokens"] / trained == pytest.approx(size.share, rel=0.01)
    assert search["tokens"] / trained <= config.search.budget  # type: ignore[operator]
    law = FittedLaw.from_dict(storage.child("decisions/000").read_json("law.json"))
    for response in law.responses:
        assert isinstance(response, DataResponse)
        assert response.counts is not None
        assert response.counts.known is not None
        # fresh weights give every token about the same
        assert -np.log(response.counts.known).mean() == pytest.approx(np.log(prepared.vocab_size), rel=0.1)


@pytest.mark.seconds
def test_a_second_decision_holds_on_to_the_mixture_that_the_stage_began_with(
    tiny: TinyRun, ray_session: None
) -> None:
    """Held to its own proposal, each decision would go as far again as the one before."""
    tiny.tree["stages"] = [{"name": "all", "steps": 60, "start": "uniform", "decide_at": [0.0]}]
    tiny.tree |= {"probe": {}, "search": {"budget": 0.05}}
    tiny.tree["evaluation"] |= {"weights": {"code": 0.6, "german": 0.4}}
    tiny.tree["proposal"] = {"kl": 1.0}
    config = tiny.load(output="twice")
    prepared = prepare(config)
    begun = Mixture({"code": 0.4, "german": 0.3, "mathematics": 0.3})

    def shares(index: int, current: Mixture, first: Mixture | None) -> Mixture:
        situation = Situation(
            index=index, step=0, stage="all", space="simplex", current=current, first=first, model=None,
            tokens_left=60 * 4 * prepared.seq_len, tokens_used={},
        )  # fmt: skip
        storage = Storage(str(tiny.directory / "twice"))
        return Mixture(make_decision(config, prepared, storage, situation, Progress(), Ledger()).proposal)

    once = shares(0, begun, None)
    again = shares(1, once, begun)
    further = shares(2, once, None)
    assert once["mathematics"] < 0.9 * begun["mathematics"]
    assert again["mathematics"] == pytest.approx(once["mathematics"], abs=0.005)
    assert further["mathematics"] < 0.9 * once["mathematics"]


@pytest.mark.seconds
def test_a_model_that_nothing_has_measured_is_measured_within_the_budget(
    tiny: TinyRun, ray_session: None
) -> None:
    """A curved objective asks where the losses are: at step 0 nothing has measured them."""
    tiny.tree["stages"] = [{"name": "all", "steps": 60, "start": "uniform", "decide_at": [0.0]}]
    tiny.tree["train"]["batch_size"] = 4
    tiny.tree["evaluation"] |= {"objective": "perplexity"}
    tiny.tree |= {"probe": {}, "search": {"budget": 0.05}}
    config = tiny.load(output="measured")
    prepared = prepare(config)
    names = list(prepared.domains)
    situation = Situation(
        index=0, step=0, stage="all", space="simplex", current=Mixture.uniform(names), model=None,
        tokens_left=60 * 4 * prepared.seq_len, tokens_used={},
    )  # fmt: skip
    storage = Storage(str(tiny.directory / "measured"))
    decision = make_decision(config, prepared, storage, situation, Progress(), Ledger())
    search = decision.details["cost"]["search"]
    assert 0 < search["tokens"] <= 0.05 * 3 * 60 * 4 * prepared.seq_len
    assert search["flops"] == pytest.approx(Forecast(config, prepared).searching("opmix"), rel=0.01)
