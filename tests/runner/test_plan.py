"""The steps of a run, and its first mixtures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.runner.plan import in_stage, plan, stage_domains, start_mixture
from tests.support import TinyRun, tiny_tree

TOKENS = {"code": 600, "german": 300, "mathematics": 100}


def _config(stages: list[dict]) -> RunConfig:
    return RunConfig.model_validate(tiny_tree(Path("/nowhere")) | {"stages": stages})


def test_decisions_cut_a_stage_into_segments() -> None:
    config = _config([
        {"name": "a", "steps": 10, "decide_at": [0.5, 0.0, 0.5, 0.52]},
        {"name": "b", "steps": 4, "decide_at": [0.75]},
    ])  # fmt: skip
    assert [(s.kind, s.stage, s.start, s.end, s.index) for s in plan(config)] == [
        ("stage", 0, 0, 0, -1),
        ("decide", 0, 0, 0, 0),
        ("train", 0, 0, 5, -1),
        ("decide", 0, 5, 5, 1),
        ("train", 0, 5, 10, -1),
        ("stage", 1, 10, 10, -1),
        ("train", 1, 10, 13, -1),
        ("decide", 1, 13, 13, 2),
        ("train", 1, 13, 14, -1),
    ]


def test_a_domain_that_only_comes_later_has_no_weight_in_decisions_before() -> None:
    config = _config([
        {"name": "a", "steps": 10, "domains": ["code"]},
        {"name": "b", "steps": 4, "domains": ["german"]},
        {"name": "c", "steps": 4},
    ])  # fmt: skip
    assert in_stage(config, 0).objective() == {"code": 1.0, "german": 0.0, "mathematics": 0.0}
    assert in_stage(config, 1).objective() == {"code": 0.5, "german": 0.5, "mathematics": 0.0}
    assert in_stage(config, 2) is config
    assert in_stage(config, 0, {"mathematics"}).objective() == {
        "code": 0.5,
        "german": 0.0,
        "mathematics": 0.5,
    }

    tree = tiny_tree(Path("/nowhere")) | {"stages": [stage.model_dump() for stage in config.stages]}
    based = RunConfig.model_validate(tree | {"base": {"mixture": {"mathematics": 0.9, "web": 0.1}}})
    assert in_stage(based, 0).objective() == {"code": 0.5, "german": 0.0, "mathematics": 0.5}
    tree["evaluation"] |= {"weights": {"german": 3, "mathematics": 1}}
    weighted = RunConfig.model_validate(tree)
    assert in_stage(weighted, 0) is weighted  # nothing else has a weight
    assert in_stage(weighted, 1).objective() == {"german": 1.0, "mathematics": 0.0}


@pytest.mark.parametrize("origin", ["renamed_from", "split_from"])
def test_a_domain_that_was_read_under_another_name_is_not_one_that_only_comes_later(origin: str) -> None:
    tree = tiny_tree(Path("/nowhere")) | {
        "stages": [{"name": "a", "steps": 10, "domains": ["code"]}, {"name": "b", "steps": 4}]
    }
    tree["data"]["domains"]["german"][origin] = "deutsch"
    config = RunConfig.model_validate(tree)
    assert in_stage(config, 0).objective() == {"code": 1.0, "german": 0.0, "mathematics": 0.0}
    assert in_stage(config, 0, {"deutsch"}).objective() == {"code": 0.5, "german": 0.5, "mathematics": 0.0}
    based = RunConfig.model_validate(tree | {"base": {"mixture": {"deutsch": 1.0}}})
    assert in_stage(based, 0).objective() == {"code": 0.5, "german": 0.5, "mathematics": 0.0}


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.floats(0, 1, exclude_max=True), max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_every_step_is_trained_once_and_in_order(stages: list[tuple[int, list[float]]]) -> None:
    config = _config([{"name": f"s{n}", "steps": s, "decide_at": d} for n, (s, d) in enumerate(stages)])
    steps = plan(config)
    trained = [step for step in steps if step.kind == "train"]
    assert trained[0].start == 0
    assert trained[-1].end == sum(s for s, _ in stages)
    assert all(a.end == b.start for a, b in pairwise(trained))
    assert all(step.start < step.end for step in trained)
    decisions = [step.index for step in steps if step.kind == "decide"]
    assert decisions == list(range(len(decisions)))
    assert len({step.name(config) for step in trained}) == len(trained)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("uniform", {"code": 0.5, "german": 0.5}),
        ("proportional", {"code": 2 / 3, "german": 1 / 3}),
        ("carry", {"code": 0.25, "german": 0.75}),
        ("join", {"code": 0.25, "german": 0.75}),
        ({"german": 1, "code": 4}, {"code": 0.8, "german": 0.2}),
    ],
)
def test_first_mixture_of_a_stage(start: object, expected: dict[str, float]) -> None:
    config = _config([{"name": "a", "steps": 1, "domains": ["german", "code"], "start": start}])
    stage = config.stages[0]
    assert stage_domains(config, stage) == ["code", "german"], "in the order of the data section"
    previous = Mixture({"code": 0.2, "german": 0.6, "mathematics": 0.2})
    mixture, moved = start_mixture(config, stage, previous, TOKENS, {}, 32)
    assert mixture.shares == pytest.approx(expected)
    assert moved == {}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("carry", {"code": 0.25, "german": 0.75, "mathematics": 0.0}),
        ("join", {"code": 0.25 * 2 / 3, "german": 0.75 * 2 / 3, "mathematics": 1 / 3}),
    ],
)
def test_new_domains_join_with_a_uniform_share_or_wait(start: str, expected: dict[str, float]) -> None:
    config = _config([{"name": "a", "steps": 1, "start": start}])
    mixture, _ = start_mixture(
        config, config.stages[0], Mixture({"code": 1, "german": 3}), TOKENS | {"mathematics": 9e9}, {}, 32
    )
    assert mixture.shares == pytest.approx(expected)


@pytest.mark.parametrize("start", ["carry", "join"])
def test_carrying_nothing_over_is_proportional(start: str) -> None:
    config = _config([{"name": "a", "steps": 1, "domains": ["code", "german"], "start": start}])
    for previous in (None, Mixture({"mathematics": 1})):
        mixture, _ = start_mixture(config, config.stages[0], previous, TOKENS, {}, 32)
        assert mixture.shares == pytest.approx({"code": 2 / 3, "german": 1 / 3})


def test_caps_move_a_first_mixture_or_refuse_it(tiny: TinyRun) -> None:
    tiny.tree["data"]["domains"]["mathematics"]["max_epochs"] = 1
    config = tiny.load("stages.0.steps=4")  # 4 * 4 * 32 = 512 tokens, of which mathematics has 100
    mixture, moved = start_mixture(config, config.stages[0], None, TOKENS, {}, 32)
    assert mixture["mathematics"] == pytest.approx(100 / 512)
    assert set(moved) == {"code", "german", "mathematics"}
    for source in tiny.tree["data"]["domains"].values():
        source["max_epochs"] = 0.1
    config = tiny.load("stages.0.steps=4")
    with pytest.raises(UserError, match=r"asks for 512 tokens.*by 412.*code has 60 left"):
        start_mixture(config, config.stages[0], None, TOKENS, {}, 32)


def test_a_decision_beside_training_comes_into_force_at_a_step_known_beforehand() -> None:
    config = _config([
        {"name": "a", "steps": 20, "decide_at": [0.0, 0.5], "overlap": 3},
        {"name": "b", "steps": 20, "decide_at": [0.5], "overlap": True},
    ])  # fmt: skip
    assert [(s.kind, s.start, s.end, s.index) for s in plan(config) if s.kind != "stage"] == [
        ("overlap", 0, 3, 0),
        ("train", 3, 10, -1),
        ("overlap", 10, 13, 1),
        ("train", 13, 20, -1),
        ("train", 20, 30, -1),
        ("overlap", 30, 32, 2),
        ("train", 32, 40, -1),
    ]


def test_every_decision_has_its_search_space() -> None:
    config = _config([
        {"name": "a", "steps": 20, "decide_at": [0.5, 0.0], "search_space": ["old_new", "simplex"]},
        {"name": "b", "steps": 20, "decide_at": [0.2, 0.4], "search_space": "grouped"},
        {"name": "c", "steps": 20, "decide_at": [0.2]},
    ])  # fmt: skip
    spaces = [step.space for step in plan(config) if step.kind == "decide"]
    assert spaces == ["old_new", "simplex", "grouped", "grouped", "simplex"]
