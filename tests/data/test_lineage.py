"""Domains that are renamed, split, revised, removed and brought back keep their reading positions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix_ray.data.lineage import Content, Origin, follow, take_over
from opmix_ray.data.sampler import Sampler, SamplerState
from opmix_ray.mixture import Mixture

SIZES = (5, 17, 23, 40)


def content(number: int) -> Content:
    """The content of this number: its digest and size."""
    return Content(f"{number:08d}" * 2, SIZES[number % len(SIZES)])


class Life:
    """A sampler over domains that change, and what it delivered of every content."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.state, self.read = SamplerState(), {}
        self.now = {"a": 0, "b": 1, "c": 2}  # domain -> number of its content
        self.seen: dict[int, Counter[tuple[int, int]]] = {}  # content -> (epoch, index) -> times
        self.notes: list[str] = []
        self.names, self.contents = 0, 3

    def stage(self, batches: int, origins: dict[str, Origin] | None = None) -> None:
        now = {name: content(number) for name, number in self.now.items()}
        self.state, self.read, notes = take_over(self.state, self.read, now, origins or {})
        self.notes += notes
        sampler = Sampler(
            {name: held.sequences for name, held in now.items()},
            4,
            self.seed,
            Mixture.uniform(now),
            self.state,
        )
        for _ in range(batches):
            batch = sampler.next_batch()
            for position, *place in zip(batch.domain_ids, batch.epochs, batch.indices, strict=True):
                self.seen.setdefault(self.now[batch.domains[position]], Counter())[tuple(place)] += 1
        self.state = SamplerState.from_dict(sampler.state.to_dict())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["rename", "remove", "return", "add", "revise", "restore", "seed", "nothing"]),
        st.integers(0, 30),
        st.integers(0, 12),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
@pytest.mark.seconds
def test_no_change_repeats_or_skips_a_sequence(steps: list[tuple[str, int, int]]) -> None:
    """Whatever a domain is called and whenever it is there: every pass goes through all of a content, once."""
    life = Life(7)
    away: dict[str, int] = {}
    earlier: dict[str, list[int]] = {}
    life.stage(3)
    for kind, which, batches in steps:
        names = sorted(life.now)
        name, origins = names[which % len(names)], {}
        if kind == "rename":
            life.names += 1
            new = f"n{life.names}"
            life.now[new] = life.now.pop(name)
            origins = {new: Origin(renamed_from=name)}
            if name in earlier:
                earlier[new] = earlier.pop(name)
        elif kind == "remove" and len(names) > 1:
            away[name] = life.now.pop(name)
        elif kind == "return" and away:
            back = sorted(away)[which % len(away)]
            life.now[back] = away.pop(back)
        elif kind in ("add", "revise"):
            life.contents += 1
            if kind == "revise":
                earlier.setdefault(name, []).append(life.now[name])
            life.now[name if kind == "revise" else f"new{life.contents}"] = life.contents
        elif kind == "restore" and earlier.get(name):
            earlier[name].append(life.now[name])
            life.now[name] = earlier[name].pop(which % (len(earlier[name]) - 1))
        elif kind == "seed":
            life.seed += 1
        life.stage(batches, origins)
        assert sum(life.state.carry.values()) == 0
    for number, places in life.seen.items():
        passes = Counter(epoch for epoch, _ in places)
        assert max(places.values()) == 1, "a sequence came twice in one pass"
        assert all(passes[epoch] == content(number).sequences for epoch in range(max(passes))), "skipped"
    assert sum(map(len, life.seen.values())) == sum(life.state.consumed.values()), "a position was lost"


def state(**consumed: int) -> SamplerState:
    return SamplerState(consumed=consumed, orders={name: [3, name] for name in consumed})


def test_parts_begin_after_as_many_passes_as_the_whole() -> None:
    read = {"web": Content("w", 100)}
    now = {"blogs": Content("x", 60), "news": Content("y", 40)}
    after, _, notes = take_over(state(web=150), read, now, dict.fromkeys(now, Origin(split_from="web")))
    assert after.consumed == {"web": 150, "blogs": 90, "news": 60}
    assert notes == [
        "blogs is a part of web: it begins after 1.5 passes", "news is a part of web: it begins after 1.5 passes"
    ]  # fmt: skip


@pytest.mark.parametrize("order", [["web", "blogs"], ["blogs", "web"]])
def test_a_part_may_keep_the_name_of_the_whole(order: list[str]) -> None:
    read = {"web": Content("w", 100)}
    contents = {"web": Content("rest", 70), "blogs": Content("x", 30)}
    origins = dict.fromkeys(contents, Origin(split_from="web"))
    after, _, _ = take_over(state(web=50), read, {name: contents[name] for name in order}, origins)
    assert (after.consumed["web"], after.consumed["blogs"], after.consumed["web@w"]) == (35, 15, 50)


def test_a_split_happens_once() -> None:
    read = {"web": Content("w", 100), "blogs": Content("x", 60)}
    origins = {"blogs": Origin(split_from="web")}
    after, _, notes = take_over(state(web=100, blogs=70), read, {"blogs": Content("x", 60)}, origins)
    assert after.consumed["blogs"] == 70
    assert notes == []


def test_a_renamed_domain_that_was_revised_too_begins_anew_and_keeps_its_history() -> None:
    after, read, notes = take_over(
        state(web=5), {"web": Content("w" * 16, 9)}, {"crawl": Content("c", 9)}, {"crawl": Origin("web")}
    )
    assert after.consumed == {"crawl@wwwwwwww": 5}
    assert read["crawl"] == Content("c", 9)
    assert notes[1] == "crawl holds other sequences than before: it is read from the beginning"


@pytest.mark.parametrize(
    ("origins", "tokens", "expected"),
    [
        ({}, {"a": 1, "b": 1}, {"a": 0.6, "b": 0.4}),
        ({}, {"a": 1, "b": 1, "c": 5}, {"a": 0.6, "b": 0.4, "c": 0}),
        ({}, {"b": 1, "c": 5}, {"b": 1, "c": 0}),
        ({"z": Origin(renamed_from="a")}, {"z": 1, "b": 1}, {"z": 0.6, "b": 0.4}),
        (dict.fromkeys("xy", Origin(split_from="a")), {"x": 3, "y": 1, "b": 9}, {"x": 0.45, "y": 0.15, "b": 0.4}),
        ({"x": Origin(split_from="a")}, {"a": 1, "x": 2, "b": 9}, {"a": 0.2, "x": 0.4, "b": 0.4}),
    ],
)  # fmt: skip
def test_an_old_mixture_in_new_names(
    origins: dict[str, Origin], tokens: dict[str, float], expected: dict[str, Any]
) -> None:
    found = follow({"a": 0.6, "b": 0.4}, origins, tokens)
    assert found is not None
    assert found.shares == pytest.approx(expected)


def test_nothing_old_is_left() -> None:
    assert follow({"a": 1.0}, {}, {"c": 5}) is None
