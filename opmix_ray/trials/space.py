"""Components of a decision, the data mixtures they stand for (`p = E^T w`), and search spaces over their weights.

    space = load_space("simplex", components)
    space.distributions()         # {"w:old": FloatDistribution, "w:code": ...}
    space.weights(params)         # (C,) on the simplex

Every share is made of numbers `u` that are uniform on (0, 1): `w_i = -log u_i / sum_j -log u_j` is uniform on
the simplex (Dirichlet(1): normalised exponential variates, Devroye 1986, ch. XI.4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import Field
from scipy.optimize import nnls

from opmix_ray.config import DomainConfig, Section, parse_config, read_yaml
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture, fill_box
from opmix_ray.paths import shipped

_PULL = 1e3  # how much the weights' sum of 1 counts against the distance to the mixture


@dataclass(frozen=True)
class Components:
    """The probes of one decision.

    Args:
        names: C components, for example `old`, `code`, `prose`.
        domains: D domains.
        data: (C, D) share of every domain in what a component's probe saw; rows sum to 1. E in the paper.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        if self.data.shape != (len(self.names), len(self.domains)):
            raise ValueError(f"data is {self.data.shape}, expected {(len(self.names), len(self.domains))}")

    def ratios(self, weights: np.ndarray) -> np.ndarray:
        """Data mixtures `p = E^T w` of interpolation weights, (C,) -> (D,) or (n, C) -> (n, D)."""
        return np.asarray(weights) @ self.data

    def by_name(self) -> dict[str, dict[str, float]]:
        """Share of every domain, by component."""
        return {
            name: dict(zip(self.domains, row, strict=True))
            for name, row in zip(self.names, self.data.tolist(), strict=True)
        }

    def weights_for(self, mixture: Mixture) -> np.ndarray:
        """Interpolation weights (C,) whose data mixture is nearest to the one given.

        A mixture outside what the probes span (a share below what every probe saw) gets the nearest one inside.
        Among equals the least-squares solution with few components is taken; the component whose data is the
        mixture itself is taken where there is one.

        Raises:
            UserError: the mixture names a domain that no probe saw.
        """
        for name, share in mixture.items():
            if share > 0 and name not in self.domains:
                raise UserError(
                    "no probe has seen this domain", key=name, remedy=f"known: {', '.join(self.domains)}"
                )
        target = mixture.array(self.domains)
        exact = np.abs(self.data - target).sum(axis=1)
        if exact.min() < 1e-9:
            return np.eye(len(self.names))[int(np.argmin(exact))]
        system = np.vstack([self.data.T, _PULL * np.ones(len(self.names))])
        weights, _ = nnls(system, np.append(target, _PULL))
        return weights / weights.sum()


OLD = "old"

LOW, HIGH = 1e-4, 1 - 1e-6  # range of u: shares from about 1e-6 to 1


class SpaceConfig(Section):
    """A search space file."""

    kind: Literal["simplex", "old_new", "bounded", "grouped"] = Field(description="Shape of the space.")
    lower: float | dict[str, float] = Field(
        0.0, description="`bounded`: least share, for every domain or by domain (on top of the domain's own)."
    )
    upper: float | dict[str, float] = Field(1.0, description="`bounded`: greatest share, likewise.")
    groups: dict[str, list[str]] | None = Field(
        None, description="`grouped`: domains by group; none: the domains' own `group`."
    )


class Space(ABC):
    """A set of interpolation weights that Optuna can search.

    Args:
        components: of the decision.
    """

    kind: ClassVar[str]

    def __init__(self, components: Components) -> None:
        self.components = components

    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters that Optuna draws."""

    @abstractmethod
    def weights(self, params: Mapping[str, float]) -> np.ndarray:
        """Interpolation weights (C,) of drawn parameters."""

    @abstractmethod
    def params(self, weights: np.ndarray) -> dict[str, float]:
        """Parameters whose weights are nearest to those given; the inverse of `weights`."""

    def contains(self, weights: np.ndarray) -> bool:
        """Whether some parameters give these weights (to about 1e-4)."""
        return bool(np.abs(self.weights(self.params(weights)) - weights).max() < 1e-4)


class Simplex(Space):
    """Every mixture of the components."""

    kind = "simplex"

    def distributions(self) -> dict[str, BaseDistribution]:
        return mixture_space(self.components.names)

    def weights(self, params: Mapping[str, float]) -> np.ndarray:
        return weights_from(params, self.components.names)

    def params(self, weights: np.ndarray) -> dict[str, float]:
        return dict(zip(_keys(self.components.names), _uniforms(weights), strict=True))


class Bounded(Space):
    """Data mixtures inside a box, reached by water-filling; the weights are those that simulate them."""

    kind = "bounded"

    def __init__(self, components: Components, lower: np.ndarray, upper: np.ndarray) -> None:
        super().__init__(components)
        self.lower, self.upper = lower, upper

    def distributions(self) -> dict[str, BaseDistribution]:
        return mixture_space(self.components.domains)

    def weights(self, params: Mapping[str, float]) -> np.ndarray:
        shares = fill_box(weights_from(params, self.components.domains), self.lower, self.upper)
        return self.components.weights_for(Mixture.from_array(self.components.domains, shares))

    def params(self, weights: np.ndarray) -> dict[str, float]:
        shares = self.components.ratios(weights)
        shares = fill_box(shares, self.lower, self.upper)
        return dict(zip(_keys(self.components.domains), _uniforms(shares), strict=True))


class Grouped(Space):
    """A share for every group, then shares inside the groups; a domain's share is their product."""

    kind = "grouped"

    def __init__(self, components: Components, groups: Mapping[str, Sequence[str]]) -> None:
        super().__init__(components)
        self.groups = {name: tuple(members) for name, members in groups.items()}

    def distributions(self) -> dict[str, BaseDistribution]:
        inside = {
            name: mixture_space(members, f"in {name}:")
            for name, members in self.groups.items()
            if len(members) > 1
        }
        return mixture_space(tuple(self.groups), "group:") | {
            k: v for part in inside.values() for k, v in part.items()
        }

    def weights(self, params: Mapping[str, float]) -> np.ndarray:
        outer = weights_from(params, tuple(self.groups), "group:")
        weights = dict.fromkeys(self.components.names, 0.0)
        for share, (name, members) in zip(outer, self.groups.items(), strict=True):
            inner = weights_from(params, members, f"in {name}:") if len(members) > 1 else np.ones(1)
            weights.update(zip(members, (share * inner).tolist(), strict=True))
        return np.array([weights[name] for name in self.components.names])

    def params(self, weights: np.ndarray) -> dict[str, float]:
        given = dict(zip(self.components.names, np.asarray(weights).tolist(), strict=True))
        totals = np.array([sum(given[m] for m in members) for members in self.groups.values()])
        if totals.sum() <= 0:
            totals = np.ones(len(totals))
        found = dict(zip(_keys(tuple(self.groups), "group:"), _uniforms(totals / totals.sum()), strict=True))
        for (name, members), total in zip(self.groups.items(), totals, strict=True):
            if len(members) > 1:
                inner = np.array([given[m] for m in members]) / total if total > 0 else np.ones(len(members))
                found.update(zip(_keys(members, f"in {name}:"), _uniforms(inner / inner.sum()), strict=True))
        return found


def mixture_space(components: Sequence[str], prefix: str = "w:") -> dict[str, BaseDistribution]:
    """Optuna distributions of a mixture of components, for `OptunaSearch(space=...)`.

    Args:
        components: names.
        prefix: of the parameter names.

    Returns:
        One uniform parameter per component; `weights_from` turns drawn values into weights.
    """
    return {key: FloatDistribution(LOW, HIGH) for key in _keys(components, prefix)}


def weights_from(params: Mapping[str, float], components: Sequence[str], prefix: str = "w:") -> np.ndarray:
    """Weights (C,) on the simplex of parameters drawn from `mixture_space`."""
    logs = -np.log(np.clip([params[key] for key in _keys(components, prefix)], LOW, HIGH))
    return logs / logs.sum()


def _keys(components: Sequence[str], prefix: str = "w:") -> list[str]:
    return [prefix + name for name in components]


def _uniforms(weights: np.ndarray) -> list[float]:
    """Values u with `-log u` in proportion to the weights and a typical sum."""
    total = min(float(len(weights)), -np.log(LOW))
    return np.clip(np.exp(-total * np.asarray(weights, dtype=np.float64)), LOW, HIGH).tolist()


def read_space(name: str) -> tuple[SpaceConfig, str]:
    """A search space that ships, by name, or a YAML file; and the file it came from.

    Raises:
        UserError: no such space, or the file is wrong.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else shipped("search_spaces") / f"{name}.yaml"
    if not file.exists():
        known = sorted(path.stem for path in shipped("search_spaces").glob("*.yaml"))
        raise UserError(
            "no such search space",
            key="search.space",
            value=name,
            remedy=f"known: {', '.join(known)}, or a YAML file",
        )
    return parse_config(SpaceConfig, read_yaml(file), file), str(file)


def load_space(name: str, components: Components, sources: Mapping[str, DomainConfig] | None = None) -> Space:
    """Build a search space for a decision.

    Args:
        name: a space that ships, or a YAML file.
        components: of the decision.
        sources: the domains' configuration, for their bounds and groups.

    Raises:
        UserError: no such space, infeasible bounds, groups that leave a domain out or name one twice.
    """
    config, file = read_space(name)
    if config.kind in ("simplex", "old_new"):
        return Simplex(components)
    if config.kind == "bounded":
        lower = _limit(config.lower, "lower", components, sources, file)
        upper = _limit(config.upper, "upper", components, sources, file)
        fill_box(np.ones(len(lower)), lower, upper)
        return Bounded(components, lower, upper)
    return Grouped(components, _groups(config.groups, components, sources, file))


def _limit(
    given: float | Mapping[str, float], side: str, components: Components, sources: Any, file: str
) -> np.ndarray:
    if isinstance(given, Mapping):
        for name in given:
            if name not in components.domains:
                raise UserError(
                    "no such domain", file=file, key=f"{side}.{name}", remedy="name a domain of the stage"
                )
    own = "min_share" if side == "lower" else "max_share"
    default = 0.0 if side == "lower" else 1.0
    values = []
    for name in components.domains:
        here = given.get(name, default) if isinstance(given, Mapping) else given
        of_source = getattr(sources[name], own) if sources and name in sources else default
        values.append(max(here, of_source) if side == "lower" else min(here, of_source))
    return np.array(values, dtype=np.float64)


def _groups(
    given: Mapping[str, Sequence[str]] | None, components: Components, sources: Any, file: str
) -> dict[str, list[str]]:
    domains = [name for name in components.names if name != OLD]
    groups: dict[str, list[str]] = {}
    if given is None:
        for name in domains:
            own = sources[name].group if sources and name in sources else None
            groups.setdefault(own or name, []).append(name)
        return groups
    seen: set[str] = set()
    for group, members in given.items():
        for member in members:
            if member in seen:
                raise UserError(
                    "is in two groups", file=file, key=f"groups.{group}", value=member, remedy="keep one"
                )
            seen.add(member)
        groups[group] = [member for member in members if member in domains]
    missing = [name for name in domains if name not in seen]
    if missing:
        raise UserError(
            f"no group has {', '.join(missing)}", file=file, key="groups", remedy="add them to a group"
        )
    return {group: members for group, members in groups.items() if members}
