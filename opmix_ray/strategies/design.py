"""Mixtures for a sweep that tell most for their number.

    rows = designed(16, prior, lower={"code": 0.1}, upper={"books": 0.3}, seed=0)

Mixtures are drawn around a centre, from near the corners to near the centre, and moved within bounds. Of these the
design takes one after the other: each time the one whose logarithms of shares are farthest from those taken before (and
those of runs that there are already). So the first 16 of 32 rows are the design of 16: more can be had later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opmix_ray.errors import Share, UserError, Weight, Whole, typed
from opmix_ray.mixture import Mixture, fill_box

CONCENTRATION = (0.5, 5.0)  # bounds of c: from mixtures near the corners to mixtures near the centre
NEAR = (5.0, 50.0)  # the same around a mixture that is thought to be good
LEAST, MOST = 3, 1000  # runs that a law needs, and that are chosen one by one
POOL = 1000  # mixtures that a design is taken from
EPS = 0.01  # added to shares before their logarithm


def sample_mixtures(
    prior: Mixture, count: int, concentration: tuple[float, float], seed: int
) -> list[Mixture]:
    """Mixtures from Dirichlet(c * D * prior), c log-uniform between two bounds.

    Args:
        prior: shares of D domains.
        count: how many.
        concentration: bounds of c; small values give mixtures near the corners.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 11])
    names, centre = prior.domains, prior.array()
    low, high = np.log(concentration)
    found: list[Mixture] = []
    while len(found) < count:
        alpha = np.maximum(np.exp(rng.uniform(low, high)) * len(names) * centre, 1e-3)
        drawn = rng.dirichlet(alpha)
        if np.isfinite(drawn).all() and drawn.sum() > 0:
            found.append(Mixture.from_array(names, np.maximum(drawn, 0)))
    return found


def check_sweep(
    runs: int,
    centre: Mixture,
    lower: Mapping[str, float],
    upper: Mapping[str, float],
    *,
    near: object = None,
    bounds: object = None,
    caps: object = None,
) -> None:
    """Refuse what no sweep can be designed for.

    Args:
        runs: how many are wanted.
        centre: mixture in the middle.
        lower, upper: least and greatest share by domain.
        near, bounds, caps: where these come from, for messages; none: nowhere.

    Raises:
        UserError: too few runs, limits that no mixture meets, or a mixture to stay near that does not meet them.
    """
    if not LEAST <= runs <= MOST:
        raise UserError(
            f"a law needs at least {LEAST} runs, and more than {MOST:,} are not chosen one by one",
            key="--runs", value=runs, remedy="give another number",
        )  # fmt: skip
    for name in centre:
        if lower.get(name, 0.0) > upper.get(name, 1.0) + 1e-9:
            raise UserError(
                f"the least share is above the greatest, {upper.get(name, 1.0):.4g}",
                file=bounds, key=name if bounds else f"lower.{name}", value=lower[name], remedy="lower it",
            )  # fmt: skip
    low, high = sum(lower.get(name, 0.0) for name in centre), sum(upper.get(name, 1.0) for name in centre)
    if low > 1 + 1e-9:
        raise UserError(
            f"the least shares sum to {low:.4g}, above 1",
            file=bounds, key="--bounds" if bounds else "lower", remedy="lower them",
        )  # fmt: skip
    if high < 1 - 1e-9:
        raise UserError(
            f"the greatest shares sum to {high:.4g}, below 1, so no mixture meets them",
            file=caps or bounds, key="--caps" if caps else "--bounds" if bounds else "upper", remedy="raise them",
        )  # fmt: skip
    if near is None:
        return
    for name, share in centre.items():
        least, greatest = lower.get(name, 0.0), upper.get(name, 1.0)
        if not least - 1e-6 <= share <= greatest + 1e-6:
            raise UserError(
                f"gives `{name}` {share:.4g}, outside of its bounds {least:.4g} to {greatest:.4g}",
                key="--near", value=None if near is True else near, remedy="name a mixture within them, or widen them",
            )  # fmt: skip


def designed(
    count: int,
    centre: Mixture,
    *,
    lower: Mapping[str, float] | None = None,
    upper: Mapping[str, float] | None = None,
    near: bool = False,
    earlier: Sequence[Mixture] = (),
    seed: int = 0,
) -> list[Mixture]:
    """Mixtures for a sweep; the first is the centre unless it was trained already.

    Args:
        count: how many.
        centre: that they lie around.
        lower, upper: least and greatest share by domain.
        near: whether the centre is thought to be good, so that only mixtures near it are of interest.
        earlier: mixtures that are trained already.
        seed: of everything random.

    Raises:
        UserError: no mixture meets the bounds.
    """
    names = centre.domains
    low = np.array([(lower or {}).get(name, 0.0) for name in names])
    high = np.array([min(1.0, (upper or {}).get(name, 1.0)) for name in names])
    drawn = [centre, *sample_mixtures(centre, POOL, NEAR if near else CONCENTRATION, seed)]
    pool = np.array([_within(mixture.array(), low, high) for mixture in drawn])
    known = np.array([mixture.array(names) for mixture in earlier]).reshape(len(earlier), len(names))
    picks = _farthest(pool, known, count)
    return [Mixture.from_array(names, pool[place]) for place in picks]


def _within(shares: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    inside = (shares >= low).all() and (shares <= high).all()
    return shares if inside else fill_box(shares, low, high)


def _farthest(pool: np.ndarray, known: np.ndarray, count: int) -> list[int]:
    """Places in the pool (P, D), each as far as can be from those before it; `known` rows came before all."""
    points, before = np.log(pool + EPS), np.log(known + EPS)
    away = np.full(len(points), np.inf)
    for point in before:
        away = np.minimum(away, ((points - point) ** 2).sum(axis=1))
    picks: list[int] = []
    while len(picks) < count:
        picks.append(int(np.argmax(away)))  # of an empty design the first: the centre
        away = np.minimum(away, ((points - points[picks[-1]]) ** 2).sum(axis=1))
    return picks


@typed
def design(
    domains: Sequence[str],
    runs: int,
    *,
    near: Mapping[str, Weight] | None = None,
    tokens: Mapping[str, Weight] | None = None,
    lower: Mapping[str, Share] | None = None,
    upper: Mapping[str, Share] | None = None,
    earlier: Sequence[Mapping[str, Weight]] = (),
    seed: Whole = 0,
) -> list[Mixture]:
    """The mixtures of a sweep that tell most for their number.

    Args:
        domains: at least two names.
        runs: how many mixtures.
        near: mixture that is thought to be good, such as one that a law proposed; None: all mixtures are of interest.
        tokens: by domain, whose proportions are then in the middle; None: all domains alike.
        lower, upper: least and greatest share by domain.
        earlier: mixtures that are trained already, which these complement.
        seed: of everything random; the first rows of a larger design with the same seed are the same.

    Raises:
        UserError: fewer than two domains or three runs, unknown names, or bounds that no mixture meets.
    """
    check_names(domains)
    trained = {f"earlier.{place}": mixture for place, mixture in enumerate(earlier)}
    for key, named in {"near": near, "tokens": tokens, "lower": lower, "upper": upper, **trained}.items():
        for name in named or {}:
            if name not in domains:
                raise UserError("no such domain", key=key, value=name, remedy=f"known: {', '.join(domains)}")
        if named is not None and key not in ("lower", "upper") and not any(named.values()):
            raise UserError("no domain has a share above 0", key=key, remedy="give one a share")
    given = near if near is not None else tokens
    centre = Mixture.uniform(domains) if given is None else Mixture(given).over(domains)
    check_sweep(runs, centre, lower or {}, upper or {}, near=True if near is not None else None)
    before = [Mixture(mixture).over(domains) for mixture in earlier]
    return designed(runs, centre, lower=lower, upper=upper, near=near is not None, earlier=before, seed=seed)


def check_names(domains: Sequence[str], reserved: Sequence[str] = ()) -> None:
    """Refuse names that no sweep can have; `reserved` ones name the runs of a table.

    Raises:
        UserError: fewer than two, an empty one, one that stands twice or is reserved.
    """
    problem = remedy = ""
    for place, name in enumerate(domains):
        if not name:
            problem, remedy = "holds an empty name", "separate names by single commas"
        elif name in domains[:place]:
            problem, remedy = f"names `{name}` twice", "name each domain once"
        elif name.lower() in reserved:
            problem, remedy = f"`{name}` names the runs of a sweep", "give the domain another name"
    if not problem and len(domains) < 2:
        problem, remedy = "is one domain, whose share is always 1", "name at least two, separated by commas"
    if problem:
        raise UserError(problem, key="--domains", value=",".join(domains), remedy=remedy)
