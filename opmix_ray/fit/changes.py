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
from opmix_ray.errors import UserError, nearest
from opmix_ray.fit.sweep import Sweep

KEYS = ("renamed", "split", "merged", "added", "removed")
ALIKE = 1e-9  # shares that differ by less are the same


@dataclass(frozen=True)
class Changes:
    """What a file of changes says.

    Args:
        parts: old domain -> the new domains that its share is divided among, and how; shares sum to 1.
        added: domains that runs from before did without.
        removed: domains that no proposal may use.
        file: where it says so.
    """

    parts: dict[str, dict[str, float]]
    added: list[str]
    removed: list[str]
    file: Path

    def applied(self, sweep: Sweep) -> Sweep:
        """The sweep with the shares of its runs read as shares of the new domains.

        Raises:
            UserError: a domain that no run knows, or one that is there already.
        """
        before = [*sweep.domains, *sweep.unused]
        for name in [*self.parts, *self.removed]:
            if name not in before:
                raise UserError(
                    "no run knows this domain", file=self.file, key=name, remedy=nearest(name, before)
                )
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
        return replace(
            sweep,
            ratios=ratios[:, used],
            domains=[name for name in after if name not in unused],
            unused=unused,
            notes=notes + self._said(ratios, after),
        )

    def _said(self, ratios: np.ndarray, after: Sequence[str]) -> list[str]:
        said = []
        for name, part in self.parts.items():
            if len(part) < 2:
                continue
            columns = np.array([ratios[:, after.index(new)] / share for new, share in part.items()])
            if np.ptp(columns, axis=0).max() < ALIKE:
                said.append(
                    f"`{name}` was split, and no run has its parts in other proportions: nothing tells them apart yet"
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

    def change(key: str, old: Any, part: dict[str, float]) -> None:
        if str(old) in parts:
            raise UserError("changes twice", file=file, key=f"{key}.{old}", remedy="say it once")
        parts[str(old)] = part

    for old, new in _mapping(tree, "renamed", file, "{old: new}").items():
        if not isinstance(new, str):
            raise UserError(
                "must be a name", file=file, key=f"renamed.{old}", value=new, remedy="renamed: {old: new}"
            )
        change("renamed", old, {new: 1.0})
    for old, part in _mapping(tree, "split", file, "{old: {first: 0.7, second: 0.3}}").items():
        change("split", old, _shares(part, file, f"split.{old}"))
    for new, olds in _mapping(tree, "merged", file, "{new: [first, second]}").items():
        for old in _names(olds, file, f"merged.{new}"):
            change("merged", old, {str(new): 1.0})
    added, removed = (_names(tree.get(key) or [], file, key) for key in ("added", "removed"))
    for name in removed:
        if name in parts or name in added:
            raise UserError("changes twice", file=file, key="removed", value=name, remedy="say it once")
    return Changes(parts, added, removed, file)


def _mapping(tree: Mapping[str, Any], key: str, file: Path, like: str) -> Mapping[Any, Any]:
    found = tree.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError("must be a mapping", file=file, key=key, value=found, remedy=f"{key}: {like}")
    return found


def _names(given: Any, file: Path, key: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
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
