"""Proposals: as good as a grid finds, within every limit, and said in words."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from opmix_ray import numerics
from opmix_ray.decision.propose import Proposal, propose
from opmix_ray.errors import UserError
from opmix_ray.laws import LAWS, FittedLaw, fit_law
from opmix_ray.mixture import Mixture

DOMAINS = ["code", "prose", "maths"]
METRICS = ["code_loss", "prose_loss", "maths_loss"]
UNIFORM = Mixture.uniform(DOMAINS)
GRID = np.array([(i, j, 400 - i - j) for i in range(401) for j in range(401 - i)], dtype=np.float64) / 400.0


def losses(ratios: np.ndarray) -> np.ndarray:
    """Each domain's loss falls with its own share, code's with maths too, (n, 3) -> (n, 3)."""
    code, prose, maths = ratios.T
    return np.column_stack(
        [
            1.0 + 1.0 * (code + 0.3 * maths + 0.05) ** -0.3,
            2.0 + 0.5 * (prose + 0.05) ** -0.4,
            1.5 + 0.7 * (maths + 0.2 * code + 0.05) ** -0.2,
        ]
    )


_FITTED: dict[tuple[str, int], FittedLaw] = {}


def fitted(law: str, rows: int = 30) -> FittedLaw:
    if (law, rows) not in _FITTED:
        rng = np.random.default_rng(0)
        ratios = rng.dirichlet(np.ones(3), rows)
        metrics = losses(ratios) + 0.003 * rng.standard_normal((rows, 3))
        _FITTED[law, rows] = fit_law(ratios, metrics, domains=DOMAINS, metric_names=METRICS, law=law)
    return _FITTED[law, rows]


def total(law: FittedLaw, shares: np.ndarray, prior: np.ndarray, kl: float) -> np.ndarray:
    divergence = (shares * np.log(np.maximum(shares, 1e-300) / prior)).sum(axis=1)
    return law.objective(shares) + kl * divergence


def value(law: FittedLaw, proposal: Proposal, prior: np.ndarray, kl: float) -> float:
    return float(total(law, proposal.mixture.array(DOMAINS)[None], prior, kl)[0])


def every_law() -> list[object]:
    names: list[object] = [name for name in [*LAWS, "auto"] if name != "trees"]
    missing = importlib.util.find_spec("lightgbm") is None
    return [
        *names,
        pytest.param("trees", marks=[pytest.mark.slow, pytest.mark.skipif(missing, reason="needs lightgbm")]),
    ]


@pytest.mark.parametrize("law_name", every_law())
@pytest.mark.parametrize("kl", [0.0, 0.05])
@pytest.mark.seconds
def test_no_grid_point_is_better(law_name: str, kl: float) -> None:
    law = fitted(law_name)
    prior = np.array([0.5, 0.3, 0.2])
    found = propose(law, prior=Mixture.from_array(DOMAINS, prior), kl=kl)
    assert value(law, found, prior, kl) <= total(law, GRID, prior, kl).min() + 1e-3


@pytest.mark.parametrize("law_name", every_law())
@pytest.mark.seconds
def test_no_grid_point_within_bounds_is_better(law_name: str) -> None:
    law = fitted(law_name)
    prior = np.full(3, 1 / 3)
    lower, upper = {"maths": 0.25}, {"code": 0.3, "prose": 0.35}
    found = propose(law, prior=UNIFORM, kl=0.02, lower=lower, upper=upper)
    inside = GRID[(GRID[:, 2] >= 0.25) & (GRID[:, 0] <= 0.3) & (GRID[:, 1] <= 0.35)]
    assert value(law, found, prior, 0.02) <= total(law, inside, prior, 0.02).min() + 1e-3
    assert found.mixture["maths"] >= 0.25 - 1e-9
    assert found.mixture["code"] <= 0.3 + 1e-9
    assert found.mixture["prose"] <= 0.35 + 1e-9


@pytest.mark.parametrize("law_name", ["log-linear", "power", "gaussian-process", "auto"])
@pytest.mark.seconds
def test_the_worst_case_is_no_better_on_a_grid(law_name: str) -> None:
    law = fitted(law_name)
    reference = dict(zip(METRICS, [2.2, 2.9, 2.3], strict=True))
    found = propose(law, prior=UNIFORM, kl=0.0, worst_case=True, reference=reference)
    excess = (law.predict(GRID) - np.array(list(reference.values()))).max(axis=1)
    assert found.objective <= excess.min() + 1e-3
    assert any("worst case" in said for said in found.binding)


@pytest.mark.parametrize("law_name", ["log-linear", "power", "gaussian-process", "auto"])
@pytest.mark.seconds
def test_no_metric_gets_worse_than_allowed(law_name: str) -> None:
    law = fitted(law_name)
    current = Mixture({"code": 0.1, "prose": 0.7, "maths": 0.2})
    free = propose(law, prior=UNIFORM, kl=0.0, current=current)
    held = propose(law, prior=UNIFORM, kl=0.0, current=current, no_worse_than={"prose_loss": 0.01})
    today = law.predict(current.array(DOMAINS))[0, 1]
    assert free.predicted["prose_loss"] > today + 0.011  # without the limit it would get worse
    assert held.predicted["prose_loss"] <= today + 0.01 + 1e-4
    predicted = law.predict(GRID)
    allowed = GRID[predicted[:, 1] <= today + 0.01]
    assert held.objective <= law.objective(allowed).min() + 1e-3
    assert any("prose_loss" in said for said in held.binding)


@pytest.mark.seconds
def test_a_promise_that_cannot_be_kept_is_refused_with_the_excess() -> None:
    law = fitted("power")
    with pytest.raises(UserError, match=r"`\w+_loss` exceeds it by 0\.\d+"):
        propose(law, prior=UNIFORM, no_worse_than=-0.3)


def test_a_heavy_prior_wins_and_a_light_one_does_not() -> None:
    law = fitted("power")
    prior = Mixture({"code": 0.8, "prose": 0.1, "maths": 0.1})
    heavy, light = propose(law, prior=prior, kl=100.0), propose(law, prior=prior, kl=0.01)
    assert heavy.mixture.distance(prior) < 0.01
    assert light.mixture.distance(prior) > 0.2
    assert heavy.kl < light.kl
    assert light.gain > heavy.gain


@pytest.mark.seconds
def test_weights_of_the_objective_move_the_mixture() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 30)
    law = fit_law(
        ratios,
        losses(ratios),
        domains=DOMAINS,
        metric_names=METRICS,
        law="power",
        objective={"prose_loss": 1.0, "code_loss": 0.05},
    )
    assert propose(law, prior=UNIFORM, kl=0.01).mixture["prose"] > 0.6


@pytest.mark.seconds
def test_limits_that_exclude_each_other_are_named_with_the_least_change() -> None:
    law = fitted("power")
    with pytest.raises(UserError, match=r"smallest change that would do: .*0\.2"):
        propose(law, prior=UNIFORM, lower={"code": 0.6, "prose": 0.6})
    with pytest.raises(UserError, match=r"greatest to 0\.6"):
        propose(law, prior=UNIFORM, upper=dict.fromkeys(DOMAINS, 0.2))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(lower={"cod": 0.1}), "lower"),
        (dict(upper={"cod": 0.1}), "upper"),
        (dict(kl=-1.0), "kl"),
        (dict(kl=float("nan")), "kl"),
        (dict(no_worse_than={"cod_loss": 0.1}), "no_worse_than"),
        (dict(worst_case=True, reference={"cod_loss": 1.0}), "reference"),
        (dict(expand={"cod": {"a": 1.0}}), "expand"),
        (dict(current=Mixture({"cod": 1.0})), "current"),
        (dict(prior=Mixture({"cod": 1.0})), "prior"),
        (dict(upper={"code": -0.5}), r"upper\.code = -0\.5: must be a number from 0 to 1"),
        (dict(upper={"code": float("nan")}), r"upper\.code = nan: must be a number from 0 to 1"),
        (dict(upper={"code": 5}), r"upper\.code = 5: must be a number from 0 to 1"),
        (dict(lower={"code": "0.5"}), r"lower\.code = '0\.5': must be a number from 0 to 1"),
        (dict(upper=[0.5, 0.5, 0.5]), r"upper = .*: must be a mapping"),
        (dict(prior="uniform"), "prior = 'uniform': must be a mapping"),
        (dict(prior={"code": -1.0, "prose": 2.0}), r"prior\.code = -1\.0: must be a number of at least 0"),
        (dict(kl="auto"), "kl = 'auto': must be a number of at least 0"),
        (dict(no_worse_than="x"), "no_worse_than = 'x': must be a mapping .* or a number"),
        (dict(bootstrap=-1), "bootstrap = -1: must be a whole number of at least 0"),
        (dict(bootstrap=2.5), r"bootstrap = 2\.5: must be a whole number"),
        (dict(bootstrap=3), "bootstrap = 3: an interval takes at least 10 refits"),
        (dict(seed=-1), "seed = -1: must be a whole number of at least 0"),
        (dict(law=None), "law = None: must be a FittedLaw"),
        (dict(first=3), "first = 3: must be a function or None"),
        (
            dict(lower={"code": 0.8}, upper={"code": 0.3}),
            "^lower: .*`code` needs its least share 0.8 lowered",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        propose(**(dict(law=fitted("linear"), prior=UNIFORM) | arguments))  # type: ignore[arg-type]


def test_mappings_are_mixtures() -> None:
    given = {"code": 6, "prose": np.float32(2), "maths": np.int64(2)}
    found = propose(fitted("linear"), prior=given, current=given, kl=1, lower={"code": np.float64(0.1)})
    assert found == propose(
        fitted("linear"), prior=Mixture(given), current=Mixture(given), kl=1.0, lower={"code": 0.1}
    )


def test_a_domain_without_share_in_the_prior_stays_out_and_is_said_to() -> None:
    found = propose(fitted("power"), prior=Mixture({"code": 0.5, "prose": 0.5, "maths": 0.0}), kl=0.05)
    assert found.mixture["maths"] < 1e-9
    assert any("`maths` stays at 0" in said for said in found.binding)
    free = propose(fitted("power"), prior=Mixture({"code": 0.5, "prose": 0.5, "maths": 0.0}), kl=0.0)
    assert free.mixture["maths"] > 0.05


def test_what_binds_is_said_in_words() -> None:
    law = fitted("power")
    capped = propose(law, prior=UNIFORM, kl=0.0, upper={"prose": 0.1}, lower={"maths": 0.5})
    assert any("`prose` is at its greatest share" in said for said in capped.binding)
    assert any("`maths` is at its least share" in said for said in capped.binding)
    alone = propose(law, prior=UNIFORM, kl=0.0, upper={"prose": 0.02, "maths": 0.02})
    assert any("close to a single domain" in said for said in alone.binding)


@pytest.mark.parametrize(
    ("lower", "upper", "said"),
    [
        ({"code": 0.01}, {"code": 0.01}, "`code` is fixed at 0.01; the law would give it more"),
        ({"code": 0.9}, {"code": 0.9}, "`code` is fixed at 0.9; the law would give it less"),
        ({"code": 0.9}, {}, "`code` is at its least share 0.9; the law would give it less"),
        ({}, {"code": 0.01}, "`code` is at its greatest share 0.01; the law would give it more"),
        ({}, {"code": 0.0}, "`code` is fixed at 0; the law would give it more"),
        (
            {"code": 0.2, "prose": 0.3, "maths": 0.5},
            {"prose": 0.3, "maths": 0.5},
            "`code` is at its least share 0.2",
        ),
        ({"code": 0.2, "prose": 0.3, "maths": 0.5}, {"prose": 0.3, "maths": 0.5}, "`maths` is fixed at 0.5"),
    ],
)
def test_what_the_law_would_give_is_its_slope(
    lower: dict[str, float], upper: dict[str, float], said: str
) -> None:
    found = propose(fitted("power"), prior=UNIFORM, kl=0.0, lower=lower, upper=upper)
    assert said in found.binding


def test_components_that_are_mixtures_are_held_to_the_prior_over_their_leaves() -> None:
    law = fitted("power")
    expand = {"prose": {"books": 0.5, "web": 0.5}, "maths": {"web": 1.0}}
    prior = Mixture({"code": 1 / 3, "books": 1 / 3, "web": 1 / 3})
    kl = 0.3
    found = propose(law, prior=prior, kl=kl, expand=expand, upper={"web": 0.4})
    leaves = np.column_stack([GRID[:, 0], 0.5 * GRID[:, 1], 0.5 * GRID[:, 1] + GRID[:, 2]])
    inside = leaves[:, 2] <= 0.4
    divergence = (leaves * np.log(np.maximum(leaves, 1e-300) * 3)).sum(axis=1)
    best = (law.objective(GRID) + kl * divergence)[inside].min()
    assert found.objective + kl * found.kl <= best + 1e-3
    assert found.leaves is not None
    assert found.leaves["web"] <= 0.4 + 1e-6
    np.testing.assert_allclose(found.leaves["books"], 0.5 * found.mixture["prose"], atol=1e-9)


@pytest.mark.parametrize("law_name", ["log-share", "power", "gaussian-process", "auto"])
@pytest.mark.seconds
def test_intervals_hold_the_proposal_and_do_not_depend_on_the_run(law_name: str) -> None:
    law = fitted(law_name)
    first = propose(
        law, prior=UNIFORM, kl=0.05, current=Mixture({"code": 1, "prose": 1, "maths": 8}), bootstrap=12
    )
    again = propose(
        law, prior=UNIFORM, kl=0.05, current=Mixture({"code": 1, "prose": 1, "maths": 8}), bootstrap=12
    )
    assert first == again
    assert first.weight_intervals is not None
    assert first.gain_interval is not None
    for name, (low, high) in first.weight_intervals.items():
        assert 0 <= low <= high <= 1
        assert low - 0.1 <= first.mixture[name] <= high + 0.1
    assert 0 < first.gain_interval[0] <= first.gain_interval[1]
    assert first.gain_interval[0] - 0.05 <= first.gain <= first.gain_interval[1] + 0.05


@pytest.mark.seconds
def test_more_noise_makes_wider_intervals() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 20)
    noise = rng.standard_normal((20, 3))
    width = []
    for size in (0.03, 0.3):
        law = fit_law(
            ratios, losses(ratios) + size * noise, domains=DOMAINS, metric_names=METRICS, law="log-share"
        )
        intervals = propose(law, prior=UNIFORM, kl=0.05, bootstrap=15).weight_intervals
        assert intervals is not None
        width.append(sum(high - low for low, high in intervals.values()))
    assert width[1] > 2 * width[0]


@pytest.mark.seconds
def test_intervals_are_the_same_in_one_process_and_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ratios = rng.dirichlet(np.ones(3), 20)
    law = fit_law(ratios, losses(ratios), domains=DOMAINS, metric_names=METRICS, law="auto")
    found, told = [], []
    for least in (np.inf, 0.0):
        monkeypatch.setattr(numerics, "WORTH", least)
        found.append(
            propose(law, prior=UNIFORM, kl=0.05, bootstrap=10, step=lambda done, total: told.append(done))
        )
    assert found[0] == found[1]
    assert told == [*range(11)] * 2


@pytest.mark.seconds
def test_a_proposal_outside_the_rows_is_called_an_extrapolation() -> None:
    rng = np.random.default_rng(0)
    ratios = 0.4 * rng.dirichlet(np.ones(3), 30) + 0.6 * np.array([1.0, 0, 0])
    law = fit_law(ratios, losses(ratios), domains=DOMAINS, metric_names=METRICS, law="power")
    found = propose(law, prior=UNIFORM, kl=0.0)
    assert found.mixture["code"] < 0.59
    assert any("an extrapolation" in said for said in found.binding)


def test_everything_is_json() -> None:
    import json

    data = propose(fitted("power"), prior=UNIFORM, bootstrap=10).to_dict()
    assert json.loads(json.dumps(data))["mixture"].keys() == set(DOMAINS)


@pytest.mark.slow
@pytest.mark.parametrize("law_name", ["log-share", "gaussian-process", "power"])
def test_the_interval_of_the_gain_holds_the_true_gain(law_name: str) -> None:
    current = Mixture({"code": 0.8, "prose": 0.1, "maths": 0.1})
    before = losses(current.array(DOMAINS)[None]).mean()
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ratios = rng.dirichlet(np.ones(3), 24)
        metrics = losses(ratios) + 0.02 * rng.standard_normal((24, 3))
        law = fit_law(ratios, metrics, domains=DOMAINS, metric_names=METRICS, law=law_name)
        found = propose(law, prior=UNIFORM, current=current, bootstrap=24)
        assert found.gain_interval is not None
        true = before - losses(found.mixture.array(DOMAINS)[None]).mean()
        held += found.gain_interval[0] <= true <= found.gain_interval[1]
    assert held >= 13  # of 18 expected
