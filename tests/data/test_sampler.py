"""The sampler: exact shares at every moment, and no sequence repeated or skipped whatever happens."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.data.sampler import (
    CHUNK,
    ONE,
    ROUNDS,
    Batch,
    Sampler,
    SamplerState,
    apportion,
    hand_over,
    permute,
    quantise,
)
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture

WEIGHTS = st.one_of(st.sampled_from([1e-12, 1e-6, 0.001, 0.5, 0.999, 1.0]), st.floats(1e-4, 1.0))
WEIGHTS_OR_ZERO = st.one_of(st.just(0.0), WEIGHTS)


def normal(weights: list[float]) -> np.ndarray:
    return np.array(weights) / math.fsum(weights)


def keys(count: int, start: int = 0) -> np.ndarray:
    return np.random.default_rng(start).integers(0, 2**64, size=(count, ROUNDS), dtype=np.uint64)


def permutation(n: int, key: np.ndarray) -> np.ndarray:
    return permute(np.arange(n), np.full(n, n), np.tile(key, (n, 1)))


def errors_by_unit(picks: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Delivered minus asked after every unit, shape (units + 1, n), in 1/2**SHARE_BITS sequences."""
    delivered = np.cumsum(np.eye(len(shares), dtype=np.int64)[picks], axis=0) * ONE
    asked = np.arange(1, len(picks) + 1)[:, None] * shares
    return np.concatenate([np.zeros((1, len(shares)), dtype=np.int64), delivered - asked])


def tijdeman(carry: list[int], shares: list[int], units: int) -> tuple[list[int], list[int]]:
    """The algorithm as it is written down, unit by unit, in fractions."""
    n, carry, picks = len(shares), list(carry), []
    margin = Fraction(ONE, 2 * n - 2)
    for _ in range(units):
        carry = [c + p for c, p in zip(carry, shares, strict=True)]
        eligible = [i for i in range(n) if carry[i] >= margin]
        late = [i for i in eligible if carry[i] >= ONE - margin]
        deadline = {i: math.ceil((ONE - margin - carry[i]) / shares[i]) for i in eligible}
        chosen = max(late, key=lambda i: carry[i]) if late else min(eligible, key=lambda i: (deadline[i], i))
        carry[chosen] -= ONE
        picks.append(chosen)
    return picks, carry


# --- shares -----------------------------------------------------------------------------------------------


@given(st.lists(WEIGHTS_OR_ZERO, min_size=1, max_size=40).filter(any))
@pytest.mark.seconds
def test_quantised_shares_are_exact(weights: list[float]) -> None:
    shares = normal(weights)
    whole = quantise(shares)
    assert whole.sum() == ONE
    assert ((whole > 0) == (shares > 0)).all()
    assert np.abs(whole - shares * ONE).max() <= len(weights)


@given(st.integers(0, 2**32), st.integers(1, 300))
@pytest.mark.seconds
def test_quantised_shares_are_rounded_by_largest_remainder(seed: int, n: int) -> None:
    shares = np.random.default_rng(seed).dirichlet([1.0] * n) + 1e-9
    scaled = shares / math.fsum(shares) * ONE
    whole = quantise(scaled / ONE)
    up = whole > np.floor(scaled)
    assert (np.abs(whole - scaled) < 1).all()
    assert (scaled - np.floor(scaled))[up].min(initial=1) >= (scaled - np.floor(scaled))[~up].max(initial=0)


def test_quantised_shares_keep_the_least_share_alive() -> None:
    assert quantise(np.array([1 - 1e-15, 1e-15])).tolist() == [ONE - 1, 1]
    assert quantise(np.array([0.0, 1.0])).tolist() == [0, ONE]


@settings(max_examples=60, deadline=None)
@given(st.lists(WEIGHTS, min_size=2, max_size=12), st.integers(0, 2**32))
@pytest.mark.seconds
def test_apportionment_is_tijdemans_algorithm(weights: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    carry = [0] * len(weights)
    for _ in range(4):
        shares = quantise(normal(rng.permutation(weights).tolist()))
        picks, after = apportion(np.array(carry), shares, 60)
        expected, carry = tijdeman(carry, shares.tolist(), 60)
        assert picks.tolist() == expected
        assert after.tolist() == carry


@pytest.mark.parametrize(("n", "whole"), [(2, 40), (3, 20), (4, 14), (5, 12)])
def test_every_prefix_is_less_than_one_sequence_off(n: int, whole: int) -> None:
    for parts in itertools.combinations_with_replacement(range(1, whole), n):
        if sum(parts) == whole:
            shares = quantise(normal(list(parts)))
            off = errors_by_unit(apportion(np.zeros(n, dtype=np.int64), shares, 2 * whole)[0], shares)
            assert np.abs(off).max() * (2 * n - 2) <= ONE * (2 * n - 3), parts


@settings(max_examples=60, deadline=None)
@given(st.lists(WEIGHTS, min_size=2, max_size=60))
@pytest.mark.seconds
def test_every_span_is_less_than_two_sequences_off(weights: list[float]) -> None:
    n, shares = len(weights), quantise(normal(weights))
    off = errors_by_unit(apportion(np.zeros(n, dtype=np.int64), shares, 1500)[0], shares)
    assert np.abs(off).max() * (2 * n - 2) <= ONE * (2 * n - 3)
    span = (off.max(axis=0) - off.min(axis=0)).max()
    assert span <= ONE if n == 2 else span < 2 * ONE


@pytest.mark.seconds
def test_a_long_run_does_not_drift() -> None:
    shares = quantise(normal([0.1, 0.2, 0.3, 0.4, 1e-5]))
    picks, carry = apportion(np.zeros(5, dtype=np.int64), shares, 300_000)
    off = errors_by_unit(picks, shares)
    assert np.abs(off).max() * 8 <= ONE * 7
    assert (carry == -off[-1]).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(WEIGHTS, min_size=2, max_size=9), st.lists(st.integers(0, 70), min_size=2, max_size=6))
def test_splitting_the_units_changes_nothing(weights: list[float], pieces: list[int]) -> None:
    shares = quantise(normal(weights))
    carry = hand_over(np.random.default_rng(0).integers(-ONE, ONE, len(weights)), 0)
    carry = hand_over(carry, -int(carry.sum()))
    whole, end = apportion(carry, shares, sum(pieces))
    parts = []
    for units in pieces:
        picks, carry = apportion(carry, shares, units)
        parts.extend(picks.tolist())
    assert parts == whole.tolist()
    assert (carry == end).all()


@given(st.lists(st.integers(-2 * ONE, 2 * ONE), min_size=1, max_size=12))
@pytest.mark.seconds
def test_handing_over_levels_without_raising_anyone(values: list[int]) -> None:
    carry = np.array(values)
    after = hand_over(carry, -int(carry.sum()))
    assert after.sum() == 0
    assert after.max() <= max(0, carry.max())
    assert after.min() >= min(0, carry.min())
    assert (np.sign(after - carry) * np.sign(-carry.sum()) >= 0).all()


def test_handing_over_raises_the_least_to_one_level() -> None:
    assert hand_over(np.array([5, -9, -3, 0]), 7).tolist() == [5, -2, -3, 0]
    assert hand_over(np.array([5, -9, -3, 0]), 8).tolist() == [5, -2, -2, 0]
    assert hand_over(np.array([5, 9, 1]), -6).tolist() == [4, 4, 1]


# --- changing mixtures ------------------------------------------------------------------------------------


def harmonic(n: int) -> float:
    return sum(1 / k for k in range(1, n + 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 24), st.sampled_from([0.02, 0.2, 1.0, 20.0]), st.integers(1, 5))
@pytest.mark.seconds
def test_carries_stay_bounded_under_any_changes(seed: int, n: int, spread: float, batch_size: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{i:02}" for i in range(n)]
    sampler = Sampler(dict.fromkeys(names, 7), batch_size, 0, Mixture.uniform(names))
    for _ in range(120):
        weights = rng.dirichlet([spread] * n) * (rng.random(n) < 0.8)
        if weights.sum() > 0:
            sampler.set_mixture(Mixture.from_array(names, weights))
        sampler.next_batch()
        carry = sampler.state.carry
        assert sum(carry.values()) == 0
        assert min(carry.values()) > -ONE
        assert max(carry.values()) <= harmonic(n) * ONE


@pytest.mark.seconds
def test_an_adversary_reaches_the_bound_but_does_not_pass_it() -> None:
    """Shares go to those not yet served, in a round: the worst that a mixture changing by the unit can do."""
    n = 12
    names = [f"d{i:02}" for i in range(n)]
    sampler = Sampler(dict.fromkeys(names, 5), 1, 0, Mixture.uniform(names))
    worst = 0.0
    for _ in range(20):
        waiting = set(names)
        while waiting:
            sampler.set_mixture(Mixture({name: 1.0 if name in waiting else 1e-7 for name in names}))
            batch = sampler.next_batch()
            waiting -= set(batch.counts())
            worst = max(worst, max(sampler.state.carry.values()) / ONE)
            if len(waiting) == 1:
                break
    assert 1.5 < worst <= harmonic(n)


@pytest.mark.seconds
def test_a_bandit_gives_tiny_shares_what_it_asked() -> None:
    """A mixture that changes at every step and asks a thousandth of a batch: the carry is never lost."""
    rng = np.random.default_rng(3)
    names = ["big", "bigger", "tiny"]
    sampler = Sampler(dict.fromkeys(names, 50), 4, 0, Mixture.uniform(names))
    asked = dict.fromkeys(names, 0.0)
    for _ in range(2500):
        tiny = rng.uniform(0.0001, 0.002)
        big = rng.uniform(0.1, 0.8)
        mixture = Mixture({"big": big, "bigger": 1 - tiny - big, "tiny": tiny})
        sampler.set_mixture(mixture)
        sampler.next_batch()
        asked = {name: asked[name] + 4 * mixture[name] for name in names}
    assert asked["tiny"] > 8
    for name in names:
        assert -1 < asked[name] - sampler.delivered[name] <= harmonic(3)


def test_a_share_of_zero_delivers_nothing_and_its_carry_goes_to_the_others() -> None:
    sampler = Sampler({"a": 9, "b": 9, "c": 9}, 1, 0, Mixture({"a": 0.45, "b": 0.45, "c": 0.1}))
    for _ in range(4):
        sampler.next_batch()
    assert sampler.state.carry["c"] != 0
    before = sampler.delivered["c"]
    sampler.set_mixture(Mixture({"a": 0.5, "b": 0.5, "c": 0.0}))
    assert sampler.state.carry["c"] == 0
    for _ in range(50):
        assert "c" not in sampler.next_batch().counts()
    assert sampler.delivered["c"] == before
    assert sum(sampler.state.carry.values()) == 0
    sampler.set_mixture(Mixture({"a": 1.0, "b": 0.0}))
    assert sampler.next_batch().counts() == {"a": 1}
    assert set(sampler.state.carry.values()) == {0}


def test_a_mixture_set_again_is_no_change() -> None:
    weights = {"a": 0.1, "b": 0.2, "c": 0.3}
    plain = Sampler({"a": 9, "b": 9, "c": 9}, 5, 0, Mixture(weights))
    again = Sampler({"a": 9, "b": 9, "c": 9}, 5, 0, Mixture(weights))
    for _ in range(20):
        again.set_mixture(Mixture(Mixture(Mixture(weights))))
        again.next_batch()
        plain.next_batch()
    assert again.state == plain.state
    assert again.state.since_step == 0
    again.set_mixture(Mixture({"a": 1, "b": 1}))
    assert again.state.since_step == 20
    assert again.state.mixture == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_normalising_once_more_is_no_change_but_a_share_that_becomes_zero_is() -> None:
    names = [f"d{i}" for i in range(9)]
    draws = np.random.default_rng(0).dirichlet([1.0] * 9, size=200)
    mixtures = [Mixture.from_array(names, draw) for draw in draws]
    mixture = next(m for m in mixtures if Mixture(m) != m)
    sampler = Sampler(dict.fromkeys(names, 9), 2, 0, mixture)
    sampler.next_batch()
    sampler.set_mixture(Mixture(mixture))
    assert sampler.state.mixture == mixture
    assert sampler.state.since_step == 0
    sampler.set_mixture(Mixture({"d0": 1.0, "d1": 1e-13}))
    sampler.next_batch()
    sampler.set_mixture(Mixture({"d0": 1.0, "d1": 0.0}))
    assert sampler.state.mixture["d1"] == 0.0
    assert sampler.state.since_step == 2


# --- any sequence of events -------------------------------------------------------------------------------

SIZES = {"a": 1, "b": 2, "c": 7, "d": 40, "e": 0}
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 8)),
        st.tuples(st.just("skip"), st.integers(0, 3)),
        st.tuples(st.just("mixture"), st.tuples(*[WEIGHTS_OR_ZERO] * 4)),
        st.tuples(st.just("toggle"), st.sampled_from("abcde")),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("workers"), st.integers(1, 6)),
    ),
    min_size=3,
    max_size=25,
)


class Witness:
    """Notes every row the workers saw and keeps it against what may be seen."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def note(self, batch: Batch, workers: int) -> None:
        rows = list(
            zip(batch.domain_ids.tolist(), batch.epochs.tolist(), batch.indices.tolist(), strict=True)
        )
        shared = [row for worker in range(workers) for row in rows[worker::workers]]
        for domain, epoch, index in shared:
            self.seen[batch.domains[domain]].append((epoch, index))

    def check(self, consumed: dict[str, int], skipped: dict[str, int]) -> None:
        for name, rows in self.seen.items():
            size = SIZES[name]
            assert len(rows) + skipped.get(name, 0) == consumed[name]
            assert len(set(rows)) == len(rows), f"{name} repeats a sequence within an epoch"
            assert all(0 <= index < size and 0 <= epoch <= consumed[name] // size for epoch, index in rows)
            if not skipped.get(name):
                full = consumed[name] // size
                assert set(rows) >= {(epoch, index) for epoch in range(full) for index in range(size)}


@settings(max_examples=120, deadline=None)
@given(EVENTS, st.integers(1, 9))
@pytest.mark.seconds
def test_no_event_repeats_or_skips_a_sequence(events: list[tuple[str, object]], batch_size: int) -> None:
    sizes, workers = dict(SIZES), 1
    weights = {"a": 0.001, "b": 0.5, "c": 0.0, "d": 0.999}
    sampler = Sampler(sizes, batch_size, 1, Mixture(weights))
    witness, skipped = Witness(), defaultdict(int)

    def allowed() -> Mixture:
        wanted = {name: weights[name] for name in weights if name in sizes}
        return Mixture(wanted) if any(wanted.values()) else Mixture.uniform(wanted)

    for kind, value in events:
        before = sampler.delivered
        if kind == "steps":
            for _ in range(value):
                witness.note(sampler.next_batch(), workers)
        elif kind == "skip":
            sampler.skip(value)
            for name, count in sampler.delivered.items():
                skipped[name] += count - before[name]
        elif kind == "workers":
            workers = value
        elif kind == "mixture":
            weights = dict(zip("abcd", value, strict=True))
            sampler.set_mixture(allowed())
        elif kind == "restart":
            state = SamplerState.from_dict(json.loads(json.dumps(sampler.state.to_dict())))
            assert state == sampler.state
            sampler = Sampler(sizes, batch_size, 1, Mixture(sampler.mixture), state)
            assert sampler.state == state
        elif value in sizes and (value == "e" or len(set(sizes) - {"e"}) > 1):
            del sizes[value]
            sampler = Sampler(sizes, batch_size, 1, allowed(), sampler.state)
        elif value not in sizes:
            sizes[value] = SIZES[value]
            sampler = Sampler(sizes, batch_size, 1, allowed(), sampler.state)
        if kind not in ("steps", "skip"):
            assert {name: n for name, n in sampler.delivered.items() if n} == {
                k: n for k, n in before.items() if n
            }
        carry = sampler.state.carry
        assert sum(carry.values()) == 0
        assert all(-ONE < c <= harmonic(5) * ONE for c in carry.values())
    witness.check(sampler.delivered, skipped)


def test_a_removed_domain_goes_on_where_it_was() -> None:
    sizes = {"a": 30, "b": 20}
    sampler = Sampler(sizes, 4, 0, Mixture.uniform(sizes))
    rows = [sampler.next_batch() for _ in range(5)]
    sampler = Sampler({"a": 30}, 4, 0, Mixture({"a": 1}), sampler.state)
    rows += [sampler.next_batch() for _ in range(2)]
    assert sampler.delivered["b"] == 10
    sampler = Sampler(sizes, 4, 0, Mixture.uniform(sizes), sampler.state)
    rows += [sampler.next_batch() for _ in range(5)]
    seen = []
    for batch in rows:
        names = np.array(batch.domains)[batch.domain_ids]
        seen.extend(batch.indices[names == "b"].tolist())
    assert sorted(seen) == list(range(20))
    assert sampler.state.since_step == 7


@pytest.mark.seconds
def test_a_restart_goes_on_with_the_same_batches() -> None:
    rng = np.random.default_rng(0)
    names = [f"d{i}" for i in range(20)]
    mixture = Mixture(dict(zip(names, rng.dirichlet([0.3] * 20).tolist(), strict=True)))
    sizes = {name: int(rng.integers(1, 60)) for name in names}
    unbroken = Sampler(sizes, 16, 5, mixture)
    broken = Sampler(sizes, 16, 5, mixture)
    for _ in range(60):
        state = SamplerState.from_dict(json.loads(json.dumps(broken.state.to_dict())))
        broken = Sampler(sizes, 16, 5, Mixture(state.mixture), state)
        one, other = unbroken.next_batch(), broken.next_batch()
        assert (one.domain_ids == other.domain_ids).all()
        assert (one.indices == other.indices).all()
        assert (one.epochs == other.epochs).all()
    assert broken.state == unbroken.state


def test_the_state_is_a_copy() -> None:
    sampler = Sampler({"a": 5, "b": 5}, 3, 0, Mixture({"a": 1, "b": 2}))
    state = sampler.state
    sampler.next_batch()
    assert state == Sampler({"a": 5, "b": 5}, 3, 0, Mixture({"a": 1, "b": 2})).state
    sampler.state.consumed["a"] = 99
    assert sampler.delivered == {"a": 1, "b": 2}


@pytest.mark.seconds
def test_skipping_is_drawing_without_looking() -> None:
    sizes = {"a": 11, "b": 300}
    drawn = Sampler(sizes, 7, 0, Mixture({"a": 0.3, "b": 0.7}))
    skipped = Sampler(sizes, 7, 0, Mixture({"a": 0.3, "b": 0.7}))
    for _ in range(CHUNK // 7 + 5):
        drawn._advance(7)
    skipped.skip(CHUNK // 7 + 5)
    assert skipped.delivered == drawn.delivered
    assert skipped.state.carry == drawn.state.carry
    assert skipped.step == CHUNK // 7 + 5


# --- order ------------------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_every_small_permutation_is_one_to_one() -> None:
    for n, key in zip(range(1, 300), keys(299), strict=True):
        assert sorted(permutation(n, key).tolist()) == list(range(n))


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(st.integers(1, 5000), st.sampled_from([1023, 1024, 1025, 4095, 4096, 4097])), st.integers(0, 99)
)
@pytest.mark.seconds
def test_permutations_are_one_to_one(n: int, seed: int) -> None:
    assert np.array_equal(np.sort(permutation(n, keys(1, seed)[0])), np.arange(n))


def test_rows_of_a_large_domain_stay_in_range() -> None:
    n = 3_000_000_007
    positions = np.arange(n - 20_000, n)
    mapped = permute(positions, np.full(20_000, n), np.tile(keys(1)[0], (20_000, 1)))
    assert len(set(mapped.tolist())) == 20_000
    assert mapped.min() >= 0
    assert n // 2 < mapped.max() < n


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations above its mean, for equally likely cells."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_small_domain_are_equally_likely(n: int) -> None:
    count = 6000
    material = keys(count, n)
    columns = [permute(np.full(count, i), np.full(count, n), material) for i in range(n)]
    orders, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    assert len(orders) == math.factorial(n)
    assert chi_square(counts) < 5


@pytest.mark.parametrize("n", [20, 64, 1000])
@pytest.mark.seconds
def test_permutations_are_well_mixed(n: int) -> None:
    """Places are hit evenly, neighbours part, and one key's order says nothing of another's."""
    material = keys(200, n)
    table = np.stack([permutation(n, key) for key in material])
    bins = {20: 20, 64: 16, 1000: 20}[n]
    places = np.zeros((bins, bins))
    np.add.at(places, (np.tile(np.arange(n) * bins // n, 200), table.ravel() * bins // n), 1)
    assert chi_square(places) < 5
    steps = np.bincount(((table[:, 1:] - table[:, :-1]) % n).ravel(), minlength=n)[1:]
    assert chi_square(steps) < 5
    fixed = (table == np.arange(n)).sum()
    assert abs(fixed - 200) < 6 * math.sqrt(200)
    same = (table[1:] == table[:-1]).sum()
    assert abs(same - 199) < 6 * math.sqrt(199)


def test_each_epoch_domain_seed_and_stream_has_its_own_order() -> None:
    def orders(seed: int, stream: str) -> dict[tuple[str, int], list[int]]:
        sampler = Sampler({"a": 40, "b": 40}, 80, seed, Mixture.uniform([*"ab"]), stream=stream)
        batches = [sampler.next_batch() for _ in range(2)]
        return {
            (name, epoch): permutation_of(batch, i).tolist()
            for epoch, batch in enumerate(batches)
            for i, name in enumerate("ab")
        }

    def permutation_of(batch: Batch, domain: int) -> np.ndarray:
        return batch.indices[batch.domain_ids == domain]

    found = [*orders(0, "main").values(), *orders(1, "main").values(), *orders(0, "probe").values()]
    assert all(sorted(order) == list(range(40)) for order in found)
    for one, other in itertools.combinations(found, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_a_probe_starts_at_given_cursors_and_moves_nothing() -> None:
    sizes = {"a": 10, "b": 10}
    main = Sampler(sizes, 4, 0, Mixture.uniform(sizes))
    main.next_batch()
    state = main.state
    probe = Sampler(sizes, 4, 0, Mixture({"a": 1}), SamplerState(consumed=main.delivered), stream="probe/a")
    rows = [probe.next_batch() for _ in range(2)]
    assert len({i for batch in rows for i in batch.indices.tolist()}) == 8
    assert probe.delivered == {"a": 10, "b": 2}
    assert main.state == state


def test_the_batch_is_shuffled_anew_at_every_step() -> None:
    sampler = Sampler({"a": 10, "b": 10}, 60, 0, Mixture({"a": 1, "b": 1}))
    orders = [tuple(sampler.next_batch().domain_ids.tolist()) for _ in range(40)]
    assert len(set(orders)) == 40
    assert all(sum(order) == 30 for order in orders)


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.seconds
def test_every_worker_gets_a_fair_share_of_every_domain(workers: int) -> None:
    sampler = Sampler({"a": 100, "b": 100}, 24, 0, Mixture({"a": 0.25, "b": 0.75}))
    rows = np.stack([sampler.next_batch().domain_ids for _ in range(400)])
    for worker in range(workers):
        mine = rows[:, worker::workers]
        deviation = math.sqrt(0.25 * 0.75 / mine.size)
        assert abs((mine == 0).mean() - 0.25) < 5 * deviation


def test_the_order_of_the_sizes_changes_nothing() -> None:
    sizes = {"c": 5, "a": 9, "b": 3}
    mixture = Mixture.uniform([*"abc"])
    one, other = Sampler(sizes, 6, 0, mixture), Sampler(dict(sorted(sizes.items())), 6, 0, mixture)
    for _ in range(10):
        x, y = one.next_batch(), other.next_batch()
        assert [x.domains[i] for i in x.domain_ids] == [y.domains[i] for i in y.domain_ids]
        assert (x.indices == y.indices).all()
    assert x.domains == ["c", "a", "b"]


DIGEST = """
import hashlib, numpy as np
from opmix_ray.data.sampler import Sampler
from opmix_ray.mixture import Mixture
sampler = Sampler({"a": 5, "b": 100, "é": 1}, 32, 7, Mixture({"a": 0.1, "b": 0.7, "é": 0.2}))
digest = hashlib.sha256()
for _ in range(20):
    batch = sampler.next_batch()
    digest.update(np.stack([batch.domain_ids, batch.indices, batch.epochs]).astype("<i8").tobytes())
result = digest.hexdigest()
"""


@pytest.mark.seconds
def test_batches_are_the_same_in_every_process_and_on_every_machine() -> None:
    """The literal pins the format: whoever changes it makes runs that were begun before go on differently."""
    printed = [
        subprocess.run(
            [sys.executable, "-c", DIGEST + "print(result)"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    names: dict[str, object] = {"hashlib": hashlib}
    exec(DIGEST, names)
    assert printed == [names["result"]] * 2
    assert str(names["result"])[:16] == "1dad82262865bfac"


# --- errors and edges -------------------------------------------------------------------------------------


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(UserError, match=r"cod = .*unknown domain.*code, prose"):
        Sampler({"code": 5, "prose": 5}, 2, 0, Mixture({"cod": 1.0}))
    sampler = Sampler({"code": 5, "prose": 5}, 2, 0, Mixture({"code": 1.0}))
    with pytest.raises(UserError, match="unknown domain"):
        sampler.set_mixture(Mixture({"code": 1.0, "web": 0.0}))
    assert sampler.next_batch().counts() == {"code": 2}


def test_an_empty_domain_may_only_have_a_share_of_zero() -> None:
    sizes = {"code": 5, "void": 0}
    with pytest.raises(UserError, match=r"void = 0\.5.*no training sequence"):
        Sampler(sizes, 2, 0, Mixture({"code": 1, "void": 1}))
    sampler = Sampler(sizes, 2, 0, Mixture({"code": 1, "void": 0}))
    assert sampler.next_batch().counts() == {"code": 2}
    with pytest.raises(UserError, match="void"):
        sampler.set_mixture(Mixture({"code": 1, "void": 1e-9}))
    assert sampler.next_batch().counts() == {"code": 2}


def test_sizes_batch_and_state_are_checked() -> None:
    with pytest.raises(UserError, match="batch_size"):
        Sampler({"a": 1}, 0, 0, Mixture({"a": 1}))
    with pytest.raises(UserError, match="negative"):
        Sampler({"a": -1}, 1, 0, Mixture({"a": 1}))
    with pytest.raises(UserError, match="sum to 0"):
        Sampler({"a": 1, "b": 1}, 1, 0, Mixture({"a": 1}), SamplerState(carry={"a": 3, "b": -2}))


def test_a_domain_of_one_sequence_repeats_it_epoch_by_epoch() -> None:
    batch = Sampler({"a": 1}, 5, 0, Mixture({"a": 1})).next_batch()
    assert batch.indices.tolist() == [0] * 5
    assert sorted(batch.epochs.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.999, 1.0])
@pytest.mark.seconds
def test_extreme_shares_are_delivered(share: float) -> None:
    sampler = Sampler({"a": 3, "b": 3}, 10, 0, Mixture({"a": share, "b": 1 - share}))
    for _ in range(300):
        sampler.next_batch()
    assert abs(sampler.delivered["a"] - 3000 * share) <= 0.5
    assert len(sampler.next_batch()) == 10
