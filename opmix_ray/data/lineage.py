"""Domains that change between stages and runs: renamed, split, revised, removed and brought back.

    state, read, notes = take_over(state, read, now, origins)

A reading position belongs to sequences, not to a name. It is found again by a domain's name and the digest of its
training sequences, or by the name that the domain had before.

| change | what becomes of the position |
|---|---|
| added | begins at its first sequence |
| removed | kept, until the domain comes back |
| renamed (`renamed_from`) | goes on, in the same order |
| split (`split_from`) | every part begins after as many passes as the whole had; what keeps its name is a part too |
| revised (other sequences) | begins anew; the old one is kept as `name@digest`, and found if the content comes back |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opmix_ray.config import DomainConfig
from opmix_ray.data.prepare import PreparedDomain
from opmix_ray.data.sampler import SamplerState
from opmix_ray.mixture import Mixture

_SHOWN = 8  # characters of a digest in a name


@dataclass(frozen=True)
class Content:
    """What a domain held when it was read: a digest of its training sequences, and how many they were."""

    digest: str
    sequences: int

    @classmethod
    def of(cls, domain: PreparedDomain) -> Content:
        """A prepared domain's content."""
        return cls(domain.digest, domain.train_sequences)


@dataclass(frozen=True)
class Origin:
    """Where a domain comes from, by the name of an earlier one."""

    renamed_from: str | None = None
    split_from: str | None = None

    @classmethod
    def of(cls, source: DomainConfig) -> Origin:
        """As configured."""
        return cls(source.renamed_from, source.split_from)


def take_over(
    state: SamplerState,
    read: Mapping[str, Content],
    now: Mapping[str, Content],
    origins: Mapping[str, Origin],
) -> tuple[SamplerState, dict[str, Content], list[str]]:
    """Reading positions for a stage's domains.

    Args:
        state: where the sampler stands, with every domain it ever read.
        read: content of the domains it read, when it read them.
        now: content of the stage's domains.
        origins: of those that come from another domain.

    Returns:
        The state and the contents to go on with, and what changed, in words.
    """
    positions = _Positions(state, read)
    for name, content in now.items():
        origin = origins.get(name, Origin())
        earlier, whole = origin.renamed_from, origin.split_from
        if name not in positions.read and earlier is not None and earlier in positions.read:
            positions.rename(earlier, name)
        before = positions.read.get(name)
        revised = before is not None and before.digest != content.digest
        if revised:
            positions.revise(name, content)
        if whole is not None and whole in read and (before is None or (revised and whole == name)):
            passes = state.consumed.get(whole, 0) / max(1, read[whole].sequences)
            positions.begin_after(passes, name, content, whole)
        positions.read[name] = content
    return positions.state, positions.read, positions.notes


class _Positions:
    """Reading positions that are being changed."""

    def __init__(self, state: SamplerState, read: Mapping[str, Content]) -> None:
        self.state = replace(
            state, consumed=dict(state.consumed), carry=dict(state.carry), mixture=dict(state.mixture),
            orders=dict(state.orders),
        )  # fmt: skip
        self.read = dict(read)
        self.notes: list[str] = []

    def rename(self, old: str, new: str) -> None:
        self._move(old, new, ("consumed", "carry", "mixture", "orders"))
        # What was read before it was last revised goes along.
        for name in [name for name in self.read if name.startswith(f"{old}@")]:
            self._move(name, new + name[len(old) :], ("consumed", "orders"))
        self.notes.append(f"{new} goes on where {old} stood")

    def revise(self, name: str, content: Content) -> None:
        self._move(name, f"{name}@{self.read[name].digest[:_SHOWN]}", ("consumed", "orders"))
        earlier = f"{name}@{content.digest[:_SHOWN]}"
        if earlier in self.read:
            self._move(earlier, name, ("consumed", "orders"))
            self.notes.append(f"{name} holds what it held before, and goes on where it stood then")
        else:
            self.notes.append(f"{name} holds other sequences than before: it is read from the beginning")

    def begin_after(self, passes: float, name: str, content: Content, whole: str) -> None:
        self.state.consumed[name] = round(passes * content.sequences)
        self.notes.append(f"{name} is a part of {whole}: it begins after {passes:.3g} passes")

    def _move(self, old: str, new: str, parts: Sequence[str]) -> None:
        for part in parts:
            values: dict[str, Any] = getattr(self.state, part)
            if old in values:
                values[new] = values.pop(old)
        self.read[new] = self.read.pop(old)


def follow(
    mixture: Mapping[str, float], origins: Mapping[str, Origin], tokens: Mapping[str, float]
) -> Mixture | None:
    """An old mixture in the names of today's domains.

    A renamed domain keeps its share, the parts of a split one divide it in proportion to their tokens, new ones have
    none, and what is left out goes to the others in proportion.

    Args:
        mixture: shares by the old names.
        origins: of today's domains that come from another one.
        tokens: training tokens of today's domains.

    Returns:
        The mixture over the domains in `tokens`; None where none of them had a share.
    """
    shares = dict(mixture)
    heirs: dict[str, list[str]] = {}
    for name in tokens:
        origin = origins.get(name, Origin())
        source = origin.renamed_from or origin.split_from
        if source in shares and name not in shares:
            heirs.setdefault(source, []).append(name)
    for source, names in heirs.items():
        members = [*([source] if source in tokens else []), *names]
        share, total = shares.pop(source), sum(tokens[name] for name in members)
        shares |= {name: share * tokens[name] / total for name in members}
    over = {name: shares.get(name, 0.0) for name in tokens}
    return Mixture(over) if sum(over.values()) > 0 else None
