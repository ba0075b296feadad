"""Held-out sequences and questions: one part for reports, another, disjoint one for the search.

sets = report_sets(prepared, reported=64, searched=32)   # {"code": (ids, mask), "quiz": ChoiceSet, ...}
sets = search_sets(prepared, reported=64, searched=32)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from opmix_ray.data.questions import ChoiceSet, ExactSet

if TYPE_CHECKING:
    from opmix_ray.data.prepare import Prepared, PreparedDomain

Held = tuple[np.ndarray, np.ndarray] | ChoiceSet | ExactSet
HeldOut = dict[str, Held]


def count_of(held: Held) -> int:
    """Sequences or questions."""
    return len(held[0]) if isinstance(held, tuple) else len(held)


def part_of(held: Held, part: slice) -> Held:
    """Some of the sequences or questions."""
    return (held[0][part], held[1][part]) if isinstance(held, tuple) else held[part]


def tokens_of(held: Held) -> int:
    """Tokens that measuring the set passes through a model, at most."""
    return int(held[0].size) if isinstance(held, tuple) else held.tokens


def texts_of(sets: Mapping[str, Held]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The sets of sequences, without those of questions."""
    return {name: held for name, held in sets.items() if isinstance(held, tuple)}


def split_counts(available: int, reported: int, searched: int) -> tuple[int, int]:
    """How many of the available sequences go to reports and to the search.

    Where there are too few for both, they are divided in proportion; with a single sequence both use it.
    """
    if available >= reported + searched:
        return reported, searched
    if available == 1:
        return 1, 1
    share = round(available * reported / (reported + searched))
    share = min(max(share, 1), available - 1)
    return min(share, reported), min(available - share, searched)


def report_sets(prepared: Prepared, reported: int, searched: int) -> HeldOut:
    """The first sequences of each evaluation set: ids int64 (n, L) and mask bool (n, L), or questions."""
    sets = {}
    for name, domain in prepared.eval_sets.items():
        count, _ = split_counts(domain.eval_sequences, reported, searched)
        sets[name] = _held(domain, slice(0, count))
    return sets


def search_sets(
    prepared: Prepared, reported: int, searched: int, names: Collection[str] | None = None
) -> HeldOut:
    """The sequences after those of `report_sets`: no decision is made on what is reported.

    Args:
        prepared: the data.
        reported, searched: sequences of each set for reports and for the search.
        names: sets that are looked at; none: all.
    """
    sets = {}
    for name, domain in prepared.eval_sets.items():
        if names is not None and name not in names:
            continue
        first, count = split_counts(domain.eval_sequences, reported, searched)
        start = first if domain.eval_sequences > 1 else 0
        sets[name] = _held(domain, slice(start, start + count))
    return sets


def _held(domain: PreparedDomain, part: slice) -> Held:
    questions = domain.questions()
    return (
        questions[part] if questions is not None else domain.evaluation().batch(range(part.start, part.stop))
    )
