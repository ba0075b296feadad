"""`opmix compare` as a whole: equal work, equal compute, what is finished is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opmix_ray.compare import compare
from opmix_ray.compare.run import check_strategies, entries, factors, learned_at
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.decision.budget import decision_size
from opmix_ray.errors import UserError
from opmix_ray.runner.forecast import Forecast
from opmix_ray.runner.plan import decision_points
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.support import TinyRun, read_json


def test_every_strategy_gets_the_same_work_but_its_own_name(tiny: TinyRun) -> None:
    config = tiny.load()
    found = entries(config, ["uniform", "opmix"], 2, "out")
    assert [(e.strategy, e.seed) for e in found] == [
        ("uniform", 3),
        ("opmix", 3),
        ("uniform", 4),
        ("opmix", 4),
    ]
    same = {"strategy", "seed", "name", "output", "stages"}
    for entry in found:
        assert entry.config.model_dump(exclude=same) == config.model_dump(exclude=same)
        assert entry.config.output == f"out/{entry.place}"


def test_cyclic_orders_move_what_arrives_and_leave_the_places(tiny: TinyRun) -> None:
    one, two, three = tiny.tree["data"]["domains"]
    tiny.tree["stages"] = [
        {"name": "first", "domains": [one], "steps": 4},
        {"name": "second", "domains": [one, two], "steps": 6, "start": "join"},
        {"name": "third", "steps": 8, "start": "join", "decide_at": [0.5]},
    ]
    found = [each.config.stages for each in entries(tiny.load(), ["uniform"], 4, "out", cyclic=True)]
    assert [[stage.domains for stage in stages] for stages in found] == [
        [[one], [one, two], [one, two, three]],
        [[two], [two, three], [two, three, one]],
        [[three], [three, one], [three, one, two]],
        [[one], [one, two], [one, two, three]],
    ]
    assert [stage.name for stage in found[1]] == ["second", "third", "first"]
    for stages in found:
        assert [(stage.steps, stage.start, stage.decide_at) for stage in stages] == [
            (4, "proportional", []), (6, "join", []), (8, "join", [0.5]),
        ]  # fmt: skip


def test_stages_that_add_nothing_have_no_cyclic_orders(tiny: TinyRun, opmix: Opmix) -> None:
    tiny.tree["stages"] = [{"name": "a", "steps": 4}, {"name": "b", "steps": 4}]
    line = opmix(
        "compare", tiny.write(), "-o", tiny.directory / "out", "--strategies", "uniform", "--cyclic"
    ).only_error()
    assert "stages = b: has no cyclic orders" in line
    assert not (tiny.directory / "out" / "runs").exists()


def test_equal_compute_shortens_what_searches(tiny: TinyRun) -> None:
    tiny.tree["stages"][0]["steps"] = 400
    config = tiny.load()
    prepared = prepare(config)
    scale = factors(config, prepared, ["uniform", "odm", "aioli", "opmix"])
    assert scale["uniform"] == scale["odm"] == 1
    assert scale["opmix"] < 1
    assert scale["aioli"] < 1
    forecast = Forecast(config, prepared)
    budget = forecast.training("uniform")
    for name, factor in scale.items():
        steps = entries(config, [name], 1, "out", scale)[0].config.stages[0].steps
        assert steps == round(400 * factor)
        total = forecast.searching(name) + steps / 400 * budget
        assert total == pytest.approx(budget, rel=0.002)


def _within_budget(tiny: TinyRun, steps: int, budget: float = 0.3, law: str = "own-share") -> RunConfig:
    """A run whose decision is sized to a budget, of which nothing is set by hand, under a law that needs probes."""
    tiny.tree["proposal"] = {"law": law}
    tiny.tree["stages"][0]["steps"] = steps
    tiny.tree["search"] = {"budget": budget, "round_size": 3}
    tiny.tree["probe"] = {"rank": 4, "alpha": 8}
    return tiny.load()


@pytest.mark.parametrize(("steps", "budget"), [(120, 0.3), (400, 0.1), (1500, 0.05), (1500, 0.02)])
def test_a_decision_is_sized_to_its_budget(tiny: TinyRun, steps: int, budget: float) -> None:
    config = _within_budget(tiny, steps, budget)
    forecast = Forecast(config, prepare(config))
    assert 0.3 * budget < forecast.searching("opmix") / forecast.training("opmix") <= budget


def test_a_forecast_counts_the_sizes_that_the_budget_allows(tiny: TinyRun) -> None:
    config = _within_budget(tiny, 120)
    prepared = prepare(config)
    forecast = Forecast(config, prepared)
    share = forecast.searching("opmix") / forecast.training("opmix")
    assert 0.1 < share <= 0.3  # as configured it would cost more than the run
    free = config.but(search={"budget": None})
    assert Forecast(free, prepared).searching("opmix") > forecast.training("opmix")
    assert Forecast(_within_budget(tiny, 120, law="auto"), prepared).searching("opmix") == 0  # it counts


def test_a_later_stage_is_forecast_to_ask_the_model_first(tiny: TinyRun) -> None:
    """It may know more than counting would teach: equal compute was exceeded by what asking it costs."""
    first = {**tiny.tree["stages"][0], "steps": 120}
    tiny.tree["stages"] = [first, {**first, "name": "later"}]
    tiny.tree["proposal"], tiny.tree["search"] = {"law": "auto"}, {"budget": 0.05}
    config = tiny.load()
    forecast = Forecast(config, prepare(config))
    size = decision_size(config, config.stages[1], len(config.data.domains))
    assert size.probe is None
    assert size.asked
    one = forecast.costs.seen_of(size.asked) * forecast.costs.forward
    assert forecast.searching("opmix") == one * len(decision_points(config.stages[1]))


def test_equal_compute_holds_where_a_shorter_run_searches_less(tiny: TinyRun) -> None:
    config = _within_budget(tiny, 120)
    prepared = prepare(config)
    scale = factors(config, prepared, ["uniform", "opmix"])["opmix"]
    forecast = Forecast(config, prepared)
    total = forecast.training("opmix", scale) + forecast.searching("opmix", scale)
    assert total == pytest.approx(forecast.training("uniform"), rel=0.02)
    assert 0.7 < scale < 0.95


def test_a_search_that_eats_the_whole_budget_is_refused(tiny: TinyRun) -> None:
    tiny.tree["strategies"] = {"swarm": {"proxies": 100}}
    config = tiny.load()
    with pytest.raises(UserError, match=r"swarm: its search alone costs .* times the whole run"):
        factors(config, prepare(config), ["swarm"])


def test_where_domains_were_learned(tiny: TinyRun) -> None:
    tiny.tree["stages"] = [
        {"name": "one", "steps": 10, "domains": ["code", "german"]},
        {"name": "two", "steps": 20},
    ]
    assert learned_at(tiny.load()) == {"code": 10, "german": 10, "mathematics": 30}
    tiny.tree["base"] = {"mixture": {"german": 1.0, "gone": 2.0}}
    assert learned_at(tiny.load()) == {"code": 10, "german": 0, "mathematics": 30}


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_a_comparison_from_the_command_line(tiny: TinyRun, opmix: Opmix) -> None:
    tiny.tree["stages"][0]["steps"] = 4
    tiny.tree["train"]["checkpoint_every"] = None
    output = tiny.directory / "table"
    arguments = ["compare", tiny.write(), "--seeds", 1, "-o", output, "--strategies", "odm", "--json"]
    ended = opmix(*arguments)
    assert ended.code == 0, ended.err
    content = json.loads(ended.out)
    assert content["complete"]
    (row,) = content["rows"]
    assert (row["strategy"], row["seed"], row["steps"], row["tokens"]) == ("odm", 3, 4, 4 * 4 * 32)
    assert read_json(output / "compare.json") == content
    assert (output / "compare.csv").read_text().count("\n") == 2
    assert (output / "compare.md").read_text().startswith("| strategy | mean loss |")
    assert "odm" in (output / "compare.html").read_text()
    state = output / "runs/odm/seed-3/state.json"
    before = state.stat().st_mtime_ns
    assert json.loads(opmix(*arguments, "--resume").out) == content
    assert state.stat().st_mtime_ns == before
    tiny.tree["train"]["batch_size"] = 5
    tiny.write()
    assert "holds a run of another configuration" in opmix(*arguments).only_error()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_strategies_differ_by_their_mixture_alone(tiny: TinyRun) -> None:
    """A bandit that never acts is the mixture that it begins with."""
    tiny.tree["strategies"] = {"odm": {"warmup_fraction": 0.99}}
    content = compare(tiny.load(), ["uniform", "odm"], seeds=1, output=str(tiny.directory / "same"))
    one, other = content["rows"]
    assert other["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert (one["steps"], one["tokens"], one["flops"]) == (other["steps"], other["tokens"], other["flops"])
    assert content["summary"][1]["versus"]["loss"]["mean"] == pytest.approx(0, abs=1e-5)


def test_wrong_input_is_one_line(tiny: TinyRun, opmix: Opmix, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no strategy is named"):
        check_strategies([" "])
    file = tiny.write()
    assert "did you mean `uniform`" in opmix("compare", file, "--strategies", "unifrom").only_error()
    large = file.with_suffix(".gpu.yaml")
    missing = opmix("compare", file, "--scale", "gpu").only_error()
    assert str(large) in missing
    assert "--scale = gpu" in missing
    large.write_text(file.read_text().replace("batch_size: 4", "batch_size: 0"))
    assert f"{large}: train.batch_size = 0" in opmix("compare", file, "--scale", "gpu").only_error()
    line = opmix("compare", file, "-o", tmp_path / "new", "--resume").only_error()
    assert "holds no comparison" in line
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("")
    assert "thesis.tex" in opmix("compare", file, "-o", tmp_path / "used").only_error()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_forecasts_are_what_the_ledger_says(tiny: TinyRun) -> None:
    tiny.tree["strategies"] = {
        "swarm": {"proxies": 4, "proxy": {"steps": 3, "model": {"hidden_size": 16}}},
        "doremi": {"proxy": {"steps": 3}},
        "mergemix": {"trials": 5, "steps": 2},
        "aioli": {"rounds": 2, "sweep_fraction": 0.5},
        "opmix_published": {"trials": 5},
    }
    config = tiny.load()
    names = ["uniform", "opmix", "opmix-published", "swarm", "doremi", "mergemix", "aioli", "retrain"]
    content = compare(config, names, seeds=1, output=str(tiny.directory / "all"))
    forecast = Forecast(config, prepare(config))
    for entry in content["summary"]:
        name, flops, search = entry["strategy"], entry["flops"]["mean"], entry["search_flops"]["mean"]
        assert search == pytest.approx(forecast.searching(name), rel=0.01), name
        assert flops - search == pytest.approx(forecast.training(name), rel=0.01), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_the_forecast_of_a_budget_is_what_the_ledger_says(tiny: TinyRun) -> None:
    config = _within_budget(tiny, 120)
    (entry,) = compare(config, ["opmix"], seeds=1, output=str(tiny.directory / "all"))["summary"]
    forecast = Forecast(config, prepare(config)).searching("opmix")
    assert entry["search_flops"]["mean"] == pytest.approx(forecast, rel=0.01)
