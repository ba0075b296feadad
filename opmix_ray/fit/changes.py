"""`--changes FILE`: domains that were renamed, split, merged, added or removed after some of the runs.

    renamed: {web: crawl}                        # old name: new name
    split: {code: {python: 0.7, java: 0.3}}      # what the old domain consisted of
    merged: {science: [arxiv, pubmed]}           # new name: old names
    added: [maths]                               # runs from before did without
    removed: [books]                             # kept in the law, and left out of the proposal

Old runs stay of use: their shares are read as shares of the new domains. A table may hold runs from before and after,
with empty cells where a run knows no such domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opmix_ray.config import read_yaml
from opmix_ray.decision.propose import Proposal
from opmix_ray.errors import UserError, nearest
from opmix_ray.fit.sweep import SAME, Sweep, check_varies
from opmix_ray.laws import FittedLaw
from opmix_ray.mixture import Mixture, fill_box

KEYS = ("renamed", "split", "merged", "added", "removed")
NOTHING = 1e-9  # a share that has no parts


@dataclass(frozen=True)
class Wholes:
    """The domains of a sweep, those that no run tells apart as one: what is known of a mixture is known of these.

    Args:
        names: C names.
        domains: D names, of the sweep.
        parts: (C, D) what each whole consists of; rows sum to 1.
    """

    names: list[str]
    domains: list[str]
    parts: np.ndarray

    @classmethod
    def each(cls, domains: Sequence[str]) -> Wholes:
        """Every domain a whole."""
        return cls(list(domains), list(domains), np.eye(len(domains)))

    @property
    def tied(self) -> list[list[str]]:
        """Domains that are parts of the same whole, by whole; others are left out."""
        groups = [np.flatnonzero(row) for row in self.parts]
        return [[self.domains[d] for d in group] for group in groups if len(group) > 1]

    def ratios(self, shares: np.ndarray) -> np.ndarray:
        """Shares of the wholes, (n, D) -> (n, C)."""
        return shares @ (self.parts > 0).T

    def mixture(self, mixture: Mixture) -> Mixture:
        """A mixture over the wholes."""
        if not self.tied:
            return mixture
        return Mixture.from_array(self.names, self.ratios(mixture.array(self.domains)))

    def limits(self, limits: Mapping[str, float], default: float) -> dict[str, float]:
        """Least or greatest shares of the wholes; parts without one have the default."""
        at = np.array([limits.get(name, default) for name in self.domains])
        return dict(zip(self.names, np.minimum(self.ratios(at), 1.0).tolist(), strict=True))

    def law(self, law: FittedLaw) -> FittedLaw:
        """A law over the wholes as one over the sweep's domains."""
        return law.of_parts(self.domains, self.parts) if self.tied else law

    def spread(
        self,
        mixture: Mixture,
        lower: Mapping[str, float] | None = None,
        upper: Mapping[str, float] | None = None,
    ) -> Mixture:
        """A mixture over the domains: parts in the proportions stated, as far as their limits allow."""
        shares = np.zeros(len(self.domains))
        for total, row in zip(mixture.array(self.names), self.parts, strict=True):
            group = np.flatnonzero(row)
            shares[group] = total * row[group]
            if len(group) < 2 or total <= NOTHING:
                continue
            names = [self.domains[d] for d in group]
            low = np.array([(lower or {}).get(name, 0.0) for name in names])
            high = np.array([(upper or {}).get(name, 1.0) for name in names])
            low, high = low / max(total, low.sum()), high / min(total, max(high.sum(), NOTHING))
            shares[group] = total * fill_box(row[group], low, high)
        return Mixture.from_array(self.domains, shares)

    def proposal(self, found: Proposal, lower: Mapping[str, float], upper: Mapping[str, float]) -> Proposal:
        """What was proposed for the wholes, over the domains."""
        if not self.tied:
            return found
        mixture = self.spread(found.mixture, lower, upper)
        intervals: dict[str, tuple[float, float]] = {}
        for place, name in enumerate(self.names if found.weight_intervals else []):
            low, high = (found.weight_intervals or {})[name]
            for d in np.flatnonzero(self.parts[place]):
                one, whole = mixture[self.domains[d]], found.mixture[name]
                share = one / whole if whole > NOTHING else self.parts[place, d]
                intervals[self.domains[d]] = (low * share, high * share)
        return replace(found, mixture=mixture, weight_intervals=intervals or None)


@dataclass(frozen=True)
class Changes:
    """What a file of changes says.

    Args:
        parts: old domain -> the new domains that its share is divided among, and how; shares sum to 1.
        keys: old domain -> the key that says so; domains that become one have the same.
        added: domains that runs from before did without.
        removed: domains that no proposal may use.
        file: where it says so.
    """

    parts: dict[str, dict[str, float]]
    keys: dict[str, str]
    added: list[str]
    removed: list[str]
    file: Path

    def applied(self, sweep: Sweep) -> Sweep:
        """The sweep with the shares of its runs read as shares of the new domains.

        Raises:
            UserError: a domain that no run knows, one that is there already, or too few mixtures that differ.
        """
        before = [*sweep.domains, *sweep.unused]
        for name in [*self.parts, *self.removed]:
            if name not in before:
                raise UserError(
                    "no run knows this domain", file=self.file, key=name, remedy=nearest(name, before)
                )
        self._check_new(sweep)
        kept = [name for name in before if name not in self.parts]
        after = list(dict.fromkeys([*kept, *(n for part in self.parts.values() for n in part), *self.added]))
        turn = np.zeros((len(sweep.domains), len(after)))
        for place, name in enumerate(sweep.domains):
            for new, share in self.parts.get(name, {name: 1.0}).items():
                turn[place, after.index(new)] = share
        ratios = sweep.ratios @ turn
        used = np.asarray((ratios > 0).any(axis=0))
        unused = [name for name, there in zip(after, used, strict=True) if not there]
        notes = [
            note
            for note in sweep.notes
            if not any(note.startswith(f"`{name}` is 0 in") for name in sweep.unused)
        ]
        notes += [f"`{name}` is 0 in every run, so the proposal leaves it out" for name in unused]
        domains = [name for name in after if name not in unused]
        found = replace(sweep, ratios=ratios[:, used], domains=domains, unused=unused, notes=notes)
        wholes = self.wholes(before, found)
        check_varies(replace(found, ratios=wholes.ratios(found.ratios)), self.file, self.file)
        return replace(found, notes=notes + self._said(wholes))

    def _check_new(self, sweep: Sweep) -> None:
        """Refuse a new name for what runs have beside another of this name."""
        there: dict[str, dict[str, np.ndarray]] = {}  # new name -> key that makes it -> which runs have it
        for name, column in zip(sweep.domains, sweep.ratios.T > 0, strict=True):
            key = self.keys.get(name, "")
            for new in self.parts.get(name, {name: 1.0}):
                made = there.setdefault(new, {})
                made[key] = made.get(key, False) | column
        for new, made in there.items():
            if (np.sum(list(made.values()), axis=0) > 1).any():
                key = [key for key in made if key][-1]
                raise UserError(
                    "runs have another domain of this name already",
                    file=self.file,
                    key=key,
                    value=new,
                    remedy=f"give it another name, or merge them (merged: {{{new}: [{new}, ...]}})",
                )
        for name in self.added:
            if any(made.all() for made in there.get(name, {}).values()):
                raise UserError(
                    "every run has this domain already",
                    file=self.file,
                    key="added",
                    value=name,
                    remedy="leave it out",
                )

    def wholes(self, before: Sequence[str], sweep: Sweep) -> Wholes:
        """The domains of a sweep, parts as one that no run has in other proportions than stated.

        Args:
            before: its domains before the changes.
            sweep: after them.
        """
        found = {name: {name: 1.0} for name in sweep.domains}  # whole -> parts
        for old, part in self.parts.items():
            left = [name for name in part if name in found]
            columns = {name: sweep.ratios[:, sweep.domains.index(name)] / part[name] for name in left}
            while left:
                away = {name: np.abs(columns[name] - columns[left[0]]).max() * part[name] for name in left}
                group = [name for name in left if away[name] < SAME]
                left = [name for name in left if name not in group]
                if len(group) < 2:
                    continue
                total = sum(part[name] for name in group)
                for name in group:
                    del found[name]
                whole = old if len(group) == len(part) and old not in found else " + ".join(group)
                found[whole] = {name: part[name] / total for name in group}
        if len(found) == len(sweep.domains):
            return Wholes.each(sweep.domains)
        order = {
            new: place for place, old in reversed([*enumerate(before)]) for new in self.parts.get(old, [old])
        }
        names = sorted(found, key=lambda name: min(order.get(part, len(before)) for part in found[name]))
        parts = [[found[whole].get(name, 0.0) for name in sweep.domains] for whole in names]
        return Wholes(names, sweep.domains, np.array(parts))

    def _said(self, wholes: Wholes) -> list[str]:
        said = []
        for tied in wholes.tied:
            old = next(old for old, part in self.parts.items() if set(tied) <= set(part))
            which = (
                "its parts" if len(tied) == len(self.parts[old]) else ", ".join(f"`{name}`" for name in tied)
            )
            said.append(
                f"`{old}` was split, and no run has {which} in other proportions: nothing tells them apart yet, so "
                "they stay as they were"
            )
        said += [
            f"`{name}` is removed: its runs are in the law, the proposal leaves it out"
            for name in self.removed
        ]
        return said


def read_changes(path: str | Path) -> Changes:
    """A file of changes.

    Raises:
        UserError: an unknown key, something else than names and shares, or a domain that changes twice.
    """
    file = Path(path)
    tree = read_yaml(file)
    for key in tree:
        if key not in KEYS:
            raise UserError("unknown key", file=file, key=str(key), remedy=nearest(str(key), KEYS))
    parts: dict[str, dict[str, float]] = {}
    keys: dict[str, str] = {}

    def change(key: str, old: Any, part: dict[str, float]) -> None:
        if str(old) in parts:
            raise UserError(
                "changes twice", file=file, key=f"{key.partition('.')[0]}.{old}", remedy="say it once"
            )
        parts[str(old)], keys[str(old)] = part, key

    for old, new in _mapping(tree, "renamed", file, "{old: new}").items():
        if not isinstance(new, str) or not new.strip():
            raise UserError(
                "must be a name", file=file, key=f"renamed.{old}", value=new, remedy="renamed: {old: new}"
            )
        change(f"renamed.{old}", old, {new: 1.0})
    for old, part in _mapping(tree, "split", file, "{old: {first: 0.7, second: 0.3}}").items():
        change(f"split.{old}", old, _shares(part, file, f"split.{old}"))
    for new, olds in _mapping(tree, "merged", file, "{new: [first, second]}").items():
        for old in _names(olds, file, f"merged.{new}"):
            change(f"merged.{new}", old, {str(new): 1.0})
    added, removed = (_names(tree.get(key) or [], file, key) for key in ("added", "removed"))
    for name in removed:
        if name in parts or name in added:
            raise UserError("changes twice", file=file, key="removed", value=name, remedy="say it once")
    return Changes(parts, keys, added, removed, file)


def _mapping(tree: Mapping[str, Any], key: str, file: Path, like: str) -> Mapping[Any, Any]:
    found = tree.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError("must be a mapping", file=file, key=key, value=found, remedy=f"{key}: {like}")
    return found


def _names(given: Any, file: Path, key: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(name, str) and name.strip() for name in given):
        raise UserError(
            "must be a list of names", file=file, key=key, value=given, remedy=f"{key}: [first, second]"
        )
    return given


def _shares(given: Any, file: Path, key: str) -> dict[str, float]:
    """Parts of a domain, which sum to 1; a list means equal ones."""
    if isinstance(given, list) and given:
        given = dict.fromkeys(_names(given, file, key), 1 / len(given))
    numbers = isinstance(given, Mapping) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 1 for v in given.values()
    )
    if not numbers or abs(sum(given.values()) - 1) > 0.01:
        raise UserError(
            "must map the parts to shares above 0 that sum to 1",
            file=file,
            key=key,
            value=given,
            remedy="{first: 0.7, second: 0.3}",
        )
    total = sum(given.values())
    return {str(name): value / total for name, value in given.items()}
