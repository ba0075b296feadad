"""Held-out sequences as arrays: one part for reports, another, disjoint one for the search.

sets = report_sets(prepared, sequences=64)   # {"code": (ids, mask), ...}
sets = search_sets(prepared, sequences=32, reported=64)
"""

from __future__ import annotations

import numpy as np

from opmix_ray.data.prepare import Prepared

HeldOut = dict[str, tuple[np.ndarray, np.ndarray]]


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
    """The first sequences of each evaluation set: ids int64 (n, L) and mask bool (n, L)."""
    sets = {}
    for name, domain in prepared.eval_sets.items():
        store = domain.evaluation()
        count, _ = split_counts(len(store), reported, searched)
        sets[name] = store.batch(range(count))
    return sets


def search_sets(prepared: Prepared, reported: int, searched: int) -> HeldOut:
    """The sequences after those of `report_sets`: no decision is made on what is reported."""
    sets = {}
    for name, domain in prepared.eval_sets.items():
        store = domain.evaluation()
        first, count = split_counts(len(store), reported, searched)
        start = first if len(store) > 1 else 0
        sets[name] = store.batch(range(start, start + count))
    return sets
