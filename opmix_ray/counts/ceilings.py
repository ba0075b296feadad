"""What counting says of limits: a law of losses by counts, where it sees a set end, how sure that is, what that leaves.

A law says how far apart mixtures end. Where they end is another question. Over 57 sets of eighteen problems a small
model ends .08 of the way below the n-gram model's loss, seen from its own loss of now (median), and 19 of 20 end less
than .2 of the way above it (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from opmix_ray.config.objective import Limit
from opmix_ray.counts.ngrams import Counts, DataLeft, as_json
from opmix_ray.laws.base import Response, register
from opmix_ray.laws.fitted import FittedLaw


@register
class DataResponse(Response):
    """A set's loss at the end of a stage: what counting says, and what probes say beyond that.

        L(p) = level + trust * (n(p) - n(q)) + (p - q) . beyond

    with `n` the loss of the n-gram model and `q` the mixture in force.

    Args:
        level: predicted at q, nats per token.
        centre: (K,) q.
        trust: nats of the model for a nat of the n-gram model.
        beyond: (K,) what a unit of share changes beyond that, nats.
        doubt: standard error of `trust`.
        covariance: (K, K) of `beyond`.
        counts: of the set; None: nothing is known but `beyond`.
        data: what the stage reads; with `counts`.
        expand: (K, D) share of every domain in each of K components; None: they are the domains.
    """

    kind = "data"
    convex = False

    def __init__(
        self,
        level: float,
        centre: np.ndarray,
        trust: float,
        beyond: np.ndarray,
        doubt: float,
        covariance: np.ndarray,
        counts: Counts | None,
        data: DataLeft | None,
        expand: np.ndarray | None = None,
    ) -> None:
        self.level, self.trust, self.doubt = level, trust, doubt
        self.centre, self.beyond, self.covariance = centre, beyond, covariance
        self.counts, self.data, self.expand = counts, data, expand
        self._middle = float(self.counted(centre[None])[0])

    def seen_from(self, shares: np.ndarray) -> DataResponse:
        """The same predictions, with standard errors of differences from another mixture (K,)."""
        return DataResponse(
            float(self.predict(shares)[0]), shares, self.trust, self.beyond, self.doubt, self.covariance,
            self.counts, self.data, self.expand,
        )  # fmt: skip

    def counted(self, ratios: np.ndarray) -> np.ndarray:
        """The n-gram model's loss, (n, K) -> (n,); 0 where there is none."""
        if self.counts is None or self.data is None:
            return np.zeros(len(ratios))
        return self.counts.loss(ratios if self.expand is None else ratios @ self.expand, self.data)

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        away = self.counted(ratios) - self._middle
        return self.level + self.trust * away + (ratios - self.centre) @ self.beyond

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        linear = np.broadcast_to(self.beyond, ratios.shape)
        if self.counts is None or self.data is None:
            return np.array(linear)
        if self.expand is None:
            return linear + self.trust * self.counts.gradient(ratios, self.data)
        return linear + self.trust * self.counts.gradient(ratios @ self.expand, self.data) @ self.expand.T

    def std(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        away = ratios - self.centre
        variance = np.einsum("nk,kl,nl->n", away, self.covariance, away)
        return np.sqrt(variance + (self.doubt * (self.counted(ratios) - self._middle)) ** 2)

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "centre": self.centre.tolist(),
            "trust": self.trust,
            "beyond": self.beyond.tolist(),
            "doubt": self.doubt,
            "covariance": self.covariance.tolist(),
            "counts": None if self.counts is None else self.counts.to_text(),
            "data": None if self.data is None else as_json(self.data),
            "expand": None if self.expand is None else self.expand.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataResponse:
        left = data["data"]
        return cls(
            data["level"], np.array(data["centre"]), data["trust"], np.array(data["beyond"]), data["doubt"],
            np.array(data["covariance"]),
            None if data["counts"] is None else Counts.from_text(data["counts"]),
            None if left is None
            else DataLeft(left["tokens_left"], np.array(left["used"]), np.array(left["distinct"])),
            None if data["expand"] is None else np.array(data["expand"]),
        )  # fmt: skip


REACHED, SPREAD = (
    -0.08,
    0.17,
)  # of the way from what counting says to the loss of now: median, standard error upwards
AT_LEAST = 0.05  # nats of a level's standard error, however near now: hardly learnable sets end up to .1 above counting
Z = 1.645  # of a one-sided 95 % bound
CONFIDENCES = {0.95: Z, 0.8: 0.842, 0.5: 0.0}  # with which a limit is to be kept, and its one-sided bounds
ERRORS = "level_errors"  # by set, nats; in the law's details
AT_LIMIT = 2e-3  # nats under its ceiling within which a set binds
NEARLY = 0.1  # of the way is left to a set that cannot come down to its ceiling: the last tenth is dear
FIRST = 1e6  # weight of a ceiling that can be kept, beside those that cannot
OVER = 1e-5  # above a ceiling that still counts as kept, in parts of it (of 1, where it is less)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Ceiling:
    """What a metric must stay below.

    Args:
        most: greatest value, in the metric's unit.
        z: standard errors that the prediction must stay below it by; 0: the prediction itself.
        error: standard error of every prediction's level, in addition to the law's own.
        weight: how much a miss counts beside misses of other ceilings.
        response: predicts the metric, with standard errors from the mixture whose value is known; None: the law's.
    """

    most: float
    z: float = 0.0
    error: float = 0.0
    response: Response | None = None
    weight: float = 1.0


def surest(
    ceilings: Mapping[str, Ceiling],
    tried: Callable[[Mapping[str, Ceiling]], tuple[Found, bool]],
    reached: Callable[[str, Ceiling], bool],
) -> Found:
    """What is found under ceilings, each at the greatest of `CONFIDENCES` that it can have.

    Where not all can be kept, those that cannot be kept alone give way, else all do. One that is not even expected to
    be kept counts little: the others do not pay for coming nearer to it.

    Args:
        ceilings: by metric.
        tried: for ceilings, what comes nearest to them or is best under them, and whether it keeps them.
        reached: whether some mixture keeps a metric's ceiling, whatever becomes of the others.
    """
    bounds = list(CONFIDENCES.values())
    rung = dict.fromkeys(ceilings, 0)
    while True:
        now = {name: replace(one, z=bounds[rung[name]]) for name, one in ceilings.items()}
        found, kept = tried(now)
        if kept:
            return found
        alone = [name for name, one in now.items() if len(now) == 1 or not reached(name, one)]
        lower = [name for name in alone or ceilings if rung[name] < len(bounds) - 1]
        if not lower:
            break
        rung |= {name: rung[name] + 1 for name in lower}
    if not alone or len(alone) == len(ceilings):
        return found
    return tried({n: replace(one, weight=1.0 if n in alone else FIRST) for n, one in now.items()})[0]


def upper_bounds(law: FittedLaw, ceilings: Mapping[int, Ceiling], shares: np.ndarray) -> np.ndarray:
    """What must stay below each ceiling, (n, D) -> (n, C): the prediction and `z` standard errors."""
    shares = np.atleast_2d(shares)
    found = np.empty((len(shares), len(ceilings)))
    for column, (metric, ceiling) in enumerate(ceilings.items()):
        response = ceiling.response or law.responses[metric]
        found[:, column] = response.predict(shares)
        if ceiling.z:
            found[:, column] += ceiling.z * np.hypot(response.std(shares), ceiling.error)
    return found


def eased(
    law: FittedLaw, ceilings: Mapping[int, Ceiling], nearest: np.ndarray, free: np.ndarray
) -> dict[int, Ceiling]:
    """Ceilings that can be kept: those that the nearest mixture (D,) misses are raised to nearly what it comes to.

    Args:
        law: predicts the metrics.
        ceilings: by metric.
        nearest: comes nearest to them.
        free: mixture (D,) that is best without them.
    """
    high = upper_bounds(law, ceilings, nearest)[0]
    alike = {metric: replace(one, weight=1.0) for metric, one in ceilings.items()}
    plain = {metric: replace(one, z=0.0) for metric, one in alike.items()}
    near, far = upper_bounds(law, plain, np.array([nearest, free]))
    raised = near + NEARLY * np.maximum(0.0, far - near)
    return {
        metric: one if h <= _allowed(one.most) else replace(plain[metric], most=max(one.most, float(most)))
        for (metric, one), h, most in zip(alike.items(), high, raised, strict=True)
    }


def levelled(law: FittedLaw, now: Mapping[str, float], before: np.ndarray | None = None) -> FittedLaw:
    """The law, each set shifted to the level at which a model of this loss ends under the mixture in force.

    A model that is better than the n-gram model would keep its loss under what it was trained on before. Under the
    mixture in force it ends as far from there as counting says.

    Args:
        law: of counting; changed in place.
        now: loss by set at the decision, nats per token.
        before: (K,) mixture that the weights come from, over the law's domains; None: the one in force, or not known.
    """
    errors = {}
    for name, response in zip(law.metric_names, law.responses, strict=True):
        here = now.get(name)
        if here is None or not np.isfinite(here) or not isinstance(response, DataResponse):
            continue
        counted = _counted(response, response.centre)
        errors[name] = (
            0.0 if response.counts is None else float(np.hypot(SPREAD * max(0.0, here - counted), AT_LEAST))
        )
        if response.counts is None:
            response.level = here
        elif here > counted:
            response.level = counted + REACHED * (here - counted)
        else:
            response.level = here
            if before is not None:
                response.level += response.trust * (counted - _counted(response, before))
    law.details[ERRORS] = errors
    return law


def _counted(response: DataResponse, shares: np.ndarray) -> float:
    return float(response.counted(shares[None])[0])


def ceilings_of(
    law: FittedLaw, limits: Mapping[str, Limit], now: Mapping[str, float], before: np.ndarray | None = None
) -> dict[str, Ceiling]:
    """What each limited set must stay below with 95 % confidence.

    Args:
        law: as levelled.
        limits: by set.
        now: loss by set at the decision; a relative limit on a set without one is left out.
        before: as for `levelled`.
    """
    errors: Mapping[str, float] = law.details.get(ERRORS, {})
    found = {}
    for name, limit in limits.items():
        here = now.get(name, np.nan)
        if name not in law.metric_names or (limit.nats is None and not np.isfinite(here)):
            continue
        response = law.responses[law.metric_names.index(name)]
        known = None
        if (
            before is not None
            and isinstance(response, DataResponse)
            and here <= _counted(response, response.centre)
        ):
            known = response.seen_from(before)
        found[name] = Ceiling(limit.ceiling(here), Z, errors.get(name, 0.0), known)
    return found


def told(law: FittedLaw, ceilings: Mapping[str, Ceiling], shares: np.ndarray) -> dict[str, dict[str, Any]]:
    """What decision.json says of every limit at one mixture (K,)."""
    if not ceilings:
        return {}
    columns = [law.metric_names.index(name) for name in ceilings]
    predicted = law.predict(shares[None])[0, columns]
    high = upper_bounds(law, dict(zip(columns, ceilings.values(), strict=True)), shares[None])[0]
    return {
        name: {
            "ceiling": ceiling.most,
            "predicted": float(p),
            "at_95": float(h),
            "confidence": (confidence := _confidence(ceiling.most, p, h)),
            "kept": confidence == max(CONFIDENCES),
            "binds": bool(h >= ceiling.most - AT_LIMIT),
        }
        for (name, ceiling), p, h in zip(ceilings.items(), predicted, high, strict=True)
    }


def _confidence(most: float, predicted: float, at_95: float) -> float:
    """The greatest of `CONFIDENCES` with which a loss stays below `most`; 0: it is expected above."""
    kept = (c for c, z in CONFIDENCES.items() if predicted + z / Z * (at_95 - predicted) <= _allowed(most))
    return max(kept, default=0.0)


def _allowed(most: float) -> float:
    return most + OVER * max(1.0, abs(most))


def missed(told_of: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """How badly limits are missed, to compare mixtures by: at most how many are expected to be, then by how much."""
    return (
        sum(1 - one["confidence"] for one in told_of.values()),
        sum(max(0.0, one["predicted"] - one["ceiling"]) for one in told_of.values() if not one["confidence"]),
    )


def in_words(told_of: Mapping[str, Mapping[str, Any]]) -> str:
    """Which limits hold, bind, or cannot be kept; empty where there are none."""
    if not told_of:
        return ""

    def each(name: str) -> str:
        one = told_of[name]
        ends = f"expected {one['predicted']:.4g}, 95 % below {one['at_95']:.4g}"
        return f"`{name}` (at most {one['ceiling']:.4g}, {ends})"

    lacking = [name for name, one in told_of.items() if not one["kept"]]
    if lacking:
        confidence = min(told_of[name]["confidence"] for name in lacking)
        instead = f"this one keeps it with {100 * confidence:g} %" if confidence else "this one comes near it"
        return (
            f"no mixture keeps the limit on {', '.join(map(each, lacking))} with 95 % confidence; {instead}"
        )
    binding = [name for name, one in told_of.items() if one["binds"]]
    if binding:
        return f"the limit on {', '.join(map(each, binding))} binds"
    return "all limits are kept with 95 % confidence and none binds"
