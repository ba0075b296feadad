"""The old mixture as one coordinate of laws and proposals; and derivatives of candidates, in the same coordinates.

part = OldPart(Mixture({"web": 0.7, "code": 0.3}), ("web", "code", "chat"))
part.names                                       # ["old", "chat"]
part.reduce(np.array([[0.35, 0.15, 0.5]]))       # [[0.5, 0.5]]

`theta(w)` is linear in the weights, so one backward pass gives a loss's derivative by every component, for the price of
about two forward passes (`Interpolator.gradients`). A law fitted on values and derivatives ranks better with a third
of the candidates, at the same cost, where there are many components and few candidates (docs/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.laws import Slopes
from opmix_ray.mixture import Mixture
from opmix_ray.trials.rows import TrialRow
from opmix_ray.trials.space import OLD as OLD
from opmix_ray.trials.space import Components


@dataclass(frozen=True)
class OldPart:
    """What of a stage's domains is old.

    Args:
        inside: share of every old domain in the old data.
        domains: D domains of the stage, the old ones among them.
    """

    inside: Mixture
    domains: tuple[str, ...]

    @classmethod
    def of(cls, old: Mixture | None, current: Mixture) -> OldPart | None:
        """What is old in a stage; None where nothing is, or nothing is new.

        The inside is that of the mixture in force, and of the old mixture where none of its domains is in force.

        Args:
            old: what was trained on before the stage; none: the mixture in force.
            current: in force, over the stage's domains.
        """
        was = [name for name in current if (old or current).get(name, 0.0) > 0]
        if not was or len(was) == len(current):
            return None
        source = current if any(current[name] > 0 for name in was) else (old or current)
        return cls(Mixture({name: source[name] for name in was}), tuple(current))

    @property
    def new(self) -> list[str]:
        """Domains that are not old."""
        return [name for name in self.domains if name not in self.inside]

    @property
    def names(self) -> list[str]:
        """`old`, then the new domains: K names."""
        return [OLD, *self.new]

    @property
    def expand(self) -> dict[str, Mapping[str, float]]:
        """What `propose` needs to know about `old`."""
        return {OLD: self.inside.shares}

    def reduce(self, ratios: np.ndarray) -> np.ndarray:
        """Shares of domains (N, D) as shares of `old` and the new domains, (N, K)."""
        ratios = np.atleast_2d(ratios)
        old = [index for index, name in enumerate(self.domains) if name in self.inside]
        new = [self.domains.index(name) for name in self.new]
        return np.column_stack([ratios[:, old].sum(axis=1), ratios[:, new]])

    def reduced(self, mixture: Mixture) -> Mixture:
        """A mixture of domains as one of `old` and the new domains."""
        return Mixture.from_array(self.names, self.reduce(mixture.array(self.domains))[0])


def probe_data(name: str, replayed: Mixture, new_share: float) -> Mixture:
    """What a component's probe sees: the replayed mixture, or `new_share` of its domain and the rest replayed."""
    if name == OLD:
        return replayed
    leaves = dict.fromkeys([*replayed, name], 0.0)
    for domain, share in replayed.items():
        leaves[domain] += (1 - new_share) * share
    leaves[name] += new_share
    return Mixture(leaves)


@dataclass(frozen=True)
class Chosen:
    """The components of a decision and what they replay.

    Args:
        names: C components, each with a probe of its own.
        replayed: shares of every domain in the old data that the probes see; `old` is trained on nothing else.
        old: what is old; None where every domain is a component.
    """

    names: list[str]
    replayed: Mixture
    old: OldPart | None

    def components(self, new_share: float) -> Components:
        """What the probe of each component sees, with `new_share` of its own domain."""
        domains = self.replayed.domains
        data = [probe_data(name, self.replayed, new_share).array(domains) for name in self.names]
        return Components(tuple(self.names), tuple(domains), np.array(data))


def choose_components(kind: str, old: Mixture | None, current: Mixture) -> Chosen:
    """The components of a decision: one per domain; in `old_new` the old mixture and the domains it gives no share.

    With one probe per domain, `p = E^T w` has exactly one solution. A further probe of the old mixture would give
    many, and they are not equal: sums of several probes average the noise of their training away, so the same
    data mixture would look better the more probes its weights are spread over.

    Args:
        kind: of the search space.
        old: what was trained on before the stage; None: nothing.
        current: in force, over the stage's domains.

    Raises:
        UserError: `old_new` where no domain is new.
    """
    if kind != "old_new":
        return Chosen(current.domains, current, None)
    part = OldPart.of(old, current)
    if part is None:
        raise UserError(
            "`old_new` needs a domain that the mixture so far gives no share",
            key="search.space",
            value="old_new",
            remedy="use `simplex`",
        )
    return Chosen(part.names, part.inside.over(current), part)


def slopes_of(
    rows: Sequence[TrialRow], sets: Sequence[str], components: Components, old: OldPart | None
) -> Slopes | None:
    """Derivatives of N candidates' losses as a law over shares takes them; None: no candidate brings any.

    Args:
        rows: N candidates.
        sets: M evaluation sets.
        components: C of them; the law has a direction for each.
        old: where the law is over the old part and the new domains.
    """
    if not any(row.slopes for row in rows):
        return None
    data = components.data if old is None else old.reduce(components.data)
    weights = np.array([[row.weights[name] for name in components.names] for row in rows])
    none = [math.nan] * len(components.names)
    gradients = np.array([[row.slopes.get(name, none) for name in sets] for row in rows], dtype=np.float64)
    return towards(gradients, weights, data)


def towards(gradients: np.ndarray, weights: np.ndarray, data: np.ndarray) -> Slopes:
    """Derivatives towards every component, from those by its weight.

    Towards component c the weights move along `e_c - w`, the shares along `data_c - p`, and a loss of gradient g by the
    weights changes by `g_c - w . g`.

    Args:
        gradients: (N, M, C) of M losses by the weights.
        weights: (N, C).
        data: (C, D) shares that the components stand for.
    """
    values = gradients - np.einsum("nmc,nc->nm", gradients, weights)[:, :, None]
    return Slopes(data[None] - (weights @ data)[:, None], values)
