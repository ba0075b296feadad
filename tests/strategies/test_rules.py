"""What strategies plan, from the configuration alone."""

from __future__ import annotations

import pytest

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.runner.plan import start_mixture
from opmix_ray.strategies.base import BUILT_IN, strategy_of
from tests.support import TinyRun

TOKENS = {"code": 900, "german": 100, "mathematics": 400}


def planned(config: RunConfig) -> RunConfig:
    return strategy_of(config).plan(config)


def first_mixture(
    tiny: TinyRun, strategy: str, *settings: str, used: dict[str, float] | None = None
) -> Mixture:
    config = tiny.load(f"strategy={strategy}", "data.seq_len=32", *settings)
    return start_mixture(config, config.stages[0], None, TOKENS, used or {}, 32)[0]


def test_uniform_and_proportional_are_what_they_say(tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["start"] = {"code": 1.0}
    assert first_mixture(tiny, "uniform") == Mixture.uniform(TOKENS)
    assert first_mixture(tiny, "proportional") == Mixture.proportional(TOKENS)
    assert first_mixture(tiny, "opmix")["code"] == 1  # no rule of its own: as configured


def test_temperature_lies_between_proportional_and_uniform(tiny: TinyRun) -> None:
    def at(value: float) -> Mixture:
        return first_mixture(tiny, "temperature", f"strategies.temperature.temperature={value}")

    assert at(1.0).distance(Mixture.proportional(TOKENS)) < 1e-12
    assert at(2.0)["code"] / at(2.0)["german"] == pytest.approx(3.0)  # the root of 9
    assert at(1e9).distance(Mixture.uniform(TOKENS)) < 1e-6


def test_fixed_shares_are_taken_and_checked(tiny: TinyRun) -> None:
    tiny.tree["strategies"] = {"fixed": {"mixture": {"code": 1, "german": 3}}}
    assert first_mixture(tiny, "fixed").shares == {"code": 0.25, "german": 0.75, "mathematics": 0.0}
    tiny.tree["strategies"] = {"fixed": {"mixture": {"coed": 1}}}
    with pytest.raises(UserError, match=r"strategies\.fixed\.mixture\.coed = 1(\.0)?: no such domain"):
        planned(tiny.load("strategy=fixed"))
    del tiny.tree["strategies"]
    with pytest.raises(UserError, match="needs a mixture"):
        planned(tiny.load("strategy=fixed"))


def test_sequential_takes_new_domains_alone_and_replay_keeps_a_tenth_of_the_old(tiny: TinyRun) -> None:
    used = {"code": 3000.0, "german": 1000.0}
    assert first_mixture(tiny, "sequential", used=used).shares == {"code": 0, "german": 0, "mathematics": 1}
    assert first_mixture(tiny, "replay", used=used).shares == pytest.approx(
        {"code": 0.075, "german": 0.025, "mathematics": 0.9}
    )
    assert first_mixture(tiny, "replay") == first_mixture(tiny, "opmix")  # nothing is old yet


def test_retraining_begins_again_with_everything_so_far(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 10, "domains": ["code", "german"], "decide_at": [0.5]},
        {"name": "two", "steps": 20, "domains": ["mathematics"], "start": "carry"},
    ]
    config = planned(tiny.load("strategy=retrain"))
    assert [stage.steps for stage in config.stages] == [10, 30]
    assert config.stages[1].domains == ["code", "german", "mathematics"]
    assert all(stage.restart and not stage.decide_at for stage in config.stages)


@pytest.mark.parametrize("strategy", [name for name in BUILT_IN if name != "self-distillation"])
def test_planning_twice_is_planning_once(tiny: TinyRun, strategy: str) -> None:
    tiny.tree["strategies"] = {"fixed": {"mixture": {"code": 1}}}
    config = planned(tiny.load(f"strategy={strategy}"))
    assert planned(config) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_only_strategies_with_a_search_decide(tiny: TinyRun) -> None:
    tiny.tree["strategies"] = {"fixed": {"mixture": {"code": 1}}}
    points = {
        name: planned(tiny.load(f"strategy={name}")).stages[0].decide_at
        for name in BUILT_IN
        if name != "self-distillation"
    }
    assert {name for name, at in points.items() if at == [0.5]} == {"opmix", "opmix-published", "mergemix"}
    assert {name for name, at in points.items() if at == [0.0]} == {"swarm", "doremi"}


def test_strategies_that_read_the_weights_wait_until_these_have_learned(tiny: TinyRun) -> None:
    def points(strategy: str, *keys: str) -> list[float]:
        return planned(tiny.load(f"strategy={strategy}", *keys)).stages[0].decide_at

    both = "stages.0.decide_at=[0.0, 0.5]"
    assert points("opmix", both) == [0.0, 0.5]
    for name in ("opmix-published", "mergemix"):
        assert points(name, both) == [0.5]
        assert points(name, "stages.0.decide_at=[0.0]") == [0.0]
        assert points(name, both, "base.run=there") == [0.0, 0.5]
    tiny.tree["stages"] = [
        {"name": name, "steps": 10, "decide_at": [0.0, 0.5], "restart": name == "anew"}
        for name in ("first", "next", "anew")
    ]
    found = planned(tiny.load("strategy=mergemix")).stages
    assert [stage.decide_at for stage in found] == [[0.5], [0.0, 0.5], [0.5]]


def test_the_published_settings_are_those_of_the_paper(tiny: TinyRun) -> None:
    config = planned(tiny.load("strategy=opmix-published"))
    assert (config.probe.rank, config.probe.alpha, config.probe.new_share) == (16, 32, 0.9)
    assert (config.search.trials, config.search.sampler) == (40, "random")
    assert (config.proposal.law, config.proposal.kl) == ("log-linear", 0.05)
    assert not config.proposal.verify


def test_self_distillation_needs_prompts(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="needs prompts"):
        planned(tiny.load("strategy=self-distillation"))


def test_a_misspelt_strategy_is_refused_with_the_nearest(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="did you mean `doremi`"):
        planned(tiny.load("strategy=doremy"))


def test_no_other_strategy_has_a_rule_for_the_first_mixture(tiny: TinyRun) -> None:
    for name in ("opmix", "opmix-published", "retrain", "swarm", "mergemix", "doremi", "odm", "aioli"):
        config = tiny.load(f"strategy={name}")
        assert strategy_of(config).start(config, config.stages[0], None, TOKENS) is None
