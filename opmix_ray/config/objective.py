"""What is minimised: one number from the losses of the evaluation sets, with its gradient; and what must not get worse.

    objective = config.objective_of(bytes_per_token)
    objective.value(losses)          # (..., M) -> (...), in objective.unit
    objective.gradient(losses)       # (..., M) -> (..., M)
    objective.at({"code": 2.1, "prose": 3.4})
    Limit.read("code", "+1 %").ceiling(2.0)    # 2.02: where the set's loss is 2.0 at the decision

`evaluation.objective` is `loss`, `perplexity` or `bits_per_byte`, each a weighted mean over the sets, or one of another
package, registered under [project.entry-points."opmix_ray.objectives"]. That one is a function of the configured sets
which returns either their weights in the mean loss, or what computes the number from losses by set:

    def by_group(sets: Mapping[str, SourceConfig]) -> dict[str, float]: ...
    def worst(sets: Mapping[str, SourceConfig]) -> Callable[[Mapping[str, float]], float]:
        return lambda losses: max(losses.values())

An object with a method `value(losses)` will do as well, registered or returned; it may name the `sets` that it looks at
and its `unit`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opmix_ray import plugins
from opmix_ray.config.data import EvaluationConfig, SourceConfig
from opmix_ray.errors import UserError

KEY = "evaluation.objective"
UNITS = {"loss": "nats per token", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
_STEP = 1e-4  # nats; of finite differences
_TRIED = 5.0  # nats on every set; what an own objective is tried with before anything is trained

NOW = "now"
_RELATIVE = re.compile(r"\+\s*(\d+(?:\.\d*)?|\.\d+)\s*%")
_FORMS = 'write nats per token (3.2), a rise from the decision\'s loss ("+1 %"), or "now"'

Own = Callable[[Mapping[str, float]], float]
_LINEAR = ("loss", "bits_per_byte")  # kinds whose slopes do not depend on the losses


def needs_losses(evaluation: EvaluationConfig) -> bool:
    """Whether a decision needs the model's losses themselves, and not only how far apart mixtures end."""
    return bool(evaluation.limits) or evaluation.objective not in _LINEAR


@dataclass(frozen=True)
class OwnObjective:
    """An objective of another package.

    Args:
        weights: by set, summing to 1; of a function of the losses the same for every set that it looks at.
        value: from losses by set to the number that is minimised; None: the weighted mean loss.
        unit: of the number.
    """

    weights: dict[str, float]
    value: Own | None = None
    unit: str = UNITS["loss"]


@dataclass(frozen=True, eq=False)
class Objective:
    """The number that is minimised.

    Args:
        kind: `loss`, `perplexity`, `bits_per_byte`, or the name of another package's.
        sets: M names, only those that count.
        weights: (M,), summing to 1.
        unit: of the value.
        bytes_per_token: (M,) mean bytes of text in a token; for `bits_per_byte`.
        own: of another package, a function of the losses by set.
    """

    kind: str
    sets: tuple[str, ...]
    weights: np.ndarray
    unit: str = UNITS["loss"]
    bytes_per_token: np.ndarray | None = None
    own: Own | None = None

    @classmethod
    def of(cls, given: Objective | Mapping[str, float]) -> Objective:
        """What is given, or the weighted mean loss where that is weights by set."""
        return given if isinstance(given, Objective) else weighted("loss", given)

    def value(self, losses: np.ndarray) -> np.ndarray:
        """The number by row, (..., M) -> (...); infinite where a perplexity overflows."""
        losses = np.asarray(losses, dtype=np.float64)
        if self.own is not None:
            rows = losses.reshape(-1, len(self.sets))
            return np.array([self._own(row) for row in rows]).reshape(losses.shape[:-1])
        return np.asarray(self._each(losses) @ self.weights)

    def gradient(self, losses: np.ndarray) -> np.ndarray:
        """Its derivative by each set's loss, (..., M) -> (..., M); by central differences for an own function."""
        losses = np.asarray(losses, dtype=np.float64)
        if self.own is not None:
            step = np.eye(len(self.sets)) * _STEP
            ahead, behind = (self.value(losses[..., None, :] + sign * step) for sign in (1, -1))
            return (ahead - behind) / (2 * _STEP)
        if self.kind == "perplexity":
            return self._each(losses) * self.weights
        return np.broadcast_to(self._slopes() * self.weights, losses.shape).copy()

    def at(self, losses: Mapping[str, float]) -> float:
        """The number for losses by set; NaN where one that counts is missing."""
        return float(self.value(np.array([losses.get(name, math.nan) for name in self.sets])))

    def weights_at(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The weighted mean loss that falls as the objective does near these losses: weights by set, summing to 1.

        Where no loss would change the number, or it is not finite, the weights are those of the sets.
        """
        with np.errstate(invalid="ignore"):
            slopes = np.maximum(
                self.gradient(np.array([losses.get(name, math.nan) for name in self.sets])), 0.0
            )
        total = slopes.sum()
        found = slopes / total if np.isfinite(total) and total > 0 else self.weights
        return dict(zip(self.sets, found.tolist(), strict=True))

    def _each(self, losses: np.ndarray) -> np.ndarray:
        """What the mean is taken of, (..., M)."""
        if self.kind == "perplexity":
            with np.errstate(over="ignore"):
                return np.exp(losses)
        return losses * self._slopes()

    def _slopes(self) -> np.ndarray:
        if self.bytes_per_token is None:
            return np.ones(len(self.sets))
        return 1 / (math.log(2) * self.bytes_per_token)

    def _own(self, losses: np.ndarray) -> float:
        assert self.own is not None
        if not np.isfinite(losses).all():
            return math.nan
        return _number(self.kind, self.own, dict(zip(self.sets, losses.tolist(), strict=True)))


def weighted(
    kind: str, weights: Mapping[str, float], bytes_per_token: Mapping[str, float | None] | None = None
) -> Objective:
    """A built-in objective over the sets with weight.

    Args:
        kind: `loss`, `perplexity` or `bits_per_byte`.
        weights: by set; those above 0 are made to sum to 1.
        bytes_per_token: by set, for `bits_per_byte`.

    Raises:
        UserError: a set with weight is not text, so that it has no bytes.
    """
    sets = tuple(name for name, weight in weights.items() if weight > 0)
    values = np.array([weights[name] for name in sets], dtype=np.float64)
    sizes = None
    if kind == "bits_per_byte":
        known = {name: (bytes_per_token or {}).get(name) for name in sets}
        lacking = [name for name, size in known.items() if not size]
        if lacking:
            raise UserError(
                f"the set {lacking[0]} holds token ids without their text, so its bytes are not known",
                key=KEY, value=kind, remedy=f"give it as text, set evaluation.weights.{lacking[0]} to 0, or use loss",
            )  # fmt: skip
        sizes = np.array([float(size or 0) for size in known.values()])
    return Objective(kind, sets, values / values.sum(), UNITS[kind], sizes)


def bytes_per_token_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Mean bytes of text in a token by set, as an evaluation's row of metrics.jsonl tells."""
    losses, bits = row.get("losses") or {}, row.get("bits_per_byte") or {}
    return {
        name: losses[name] / math.log(2) / value if value and losses.get(name) else math.nan
        for name, value in bits.items()
    }


def own_objective(name: str, sets: Mapping[str, SourceConfig]) -> OwnObjective:
    """The objective that another package registers under a name.

    Args:
        name: under which it is registered.
        sets: every evaluation set with its configuration.

    Raises:
        UserError: no package brings it, or it returns neither weights nor numbers.
    """
    found = plugins.find("objectives", name)
    if found is None:
        raise UserError(
            "no such objective, and no installed package brings it",
            key=KEY,
            value=name,
            remedy=f"known: {', '.join([*UNITS, *plugins.names('objectives')])}",
        )
    ready = hasattr(found, "value") and not isinstance(found, type)
    made = found if ready else _called(name, found, sets)
    if isinstance(made, Mapping):
        return OwnObjective(_as_weights(name, made, sets))
    value = getattr(made, "value", made)
    if not callable(value):
        raise UserError(
            f"returns {type(made).__name__}, which is neither weights nor a function of losses",
            key=KEY, value=name, remedy="see docs/plugins.md",
        )  # fmt: skip
    looked_at = list(getattr(made, "sets", None) or sets)
    unknown = [key for key in looked_at if key not in sets]
    if unknown:
        raise UserError(
            f"looks at the set {unknown[0]}, which is not there",
            key=KEY, value=name, remedy=f"the sets are {', '.join(sets)}",
        )  # fmt: skip
    tried = _number(name, value, dict.fromkeys(looked_at, _TRIED))
    if not math.isfinite(tried):
        raise UserError(
            f"returns {tried} for losses of {_TRIED:g} nats",
            key=KEY,
            value=name,
            remedy="return a finite number",
        )
    weights = {key: 1 / len(looked_at) if key in looked_at else 0.0 for key in sets}
    return OwnObjective(weights, value, str(getattr(made, "unit", name)))


def _as_weights(
    name: str, given: Mapping[str, Any], sets: Sequence[str] | Mapping[str, Any]
) -> dict[str, float]:
    try:
        weights = {key: float(value) for key, value in given.items()}
    except (TypeError, ValueError):
        weights = {}
    wrong = [key for key in weights if key not in sets]
    if wrong or any(not math.isfinite(w) or w < 0 for w in weights.values()) or not sum(weights.values()) > 0:
        raise UserError(
            f"returns weights that are none: {dict(given)}",
            key=KEY,
            value=name,
            remedy="return a number of 0 or more by set",
        )
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def _number(name: str, value: Own, losses: dict[str, float]) -> float:
    found = _called(name, value, losses)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise UserError(
            f"returns {found!r} for losses by set", key=KEY, value=name, remedy="return a number"
        ) from None


def _called(name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except UserError:
        raise
    except Exception as error:  # a package's code can fail in any way
        raise UserError(
            f"fails: {type(error).__name__}: {error}", key=KEY, value=name, remedy="mend that package"
        ) from None


@dataclass(frozen=True)
class Limit:
    """The greatest loss that a set may end at.

    Args:
        set: its name.
        nats: greatest loss, nats per token, or rate of wrong answers; None: relative.
        rise: share of the loss at the decision that it may rise by; 0 is `now`.
    """

    set: str
    nats: float | None = None
    rise: float = 0.0

    @classmethod
    def read(cls, name: str, given: float | str) -> Limit:
        """From a value of `evaluation.limits`.

        Raises:
            UserError: it is not one.
        """
        key = f"evaluation.limits.{name}"
        if isinstance(given, str):
            text = given.strip()
            if text == NOW:
                return cls(name)
            relative = _RELATIVE.fullmatch(text)
            if relative is None:
                raise UserError("is not a limit", key=key, value=given, remedy=_FORMS)
            return cls(name, rise=float(relative[1]) / 100)
        if isinstance(given, bool) or not math.isfinite(given):
            raise UserError("is not a limit", key=key, value=given, remedy=_FORMS)
        if given < 0:
            raise UserError("is below 0, and no loss is", key=key, value=given, remedy=_FORMS)
        return cls(name, nats=float(given))

    def ceiling(self, loss_now: float) -> float:
        """The greatest loss allowed, where the set's is `loss_now` at the decision."""
        return self.nats if self.nats is not None else loss_now * (1 + self.rise)

    def __str__(self) -> str:
        if self.nats is not None:
            return f"{self.set} at most {self.nats:g}"
        return f"{self.set} at most as now" + (f" +{100 * self.rise:g} %" if self.rise else "")
