"""Near-duplicates inside a domain, and a hold-out that keeps them together.

    apart = held_out(digests, signatures, tokens, fraction=0.05, least=1024)
    apart.chosen                                   # bool, one entry a document
    apart.split                                    # near-duplicates that are not kept together, and why they are not

Near-duplicates are found by MinHash (Broder 1997): 32 minima in 8 bands of 4, and a Jaccard similarity of about .7. A
minimum that many documents have comes from a template: it is no reason to call two of them alike, and where hardly
another is left, nothing is known about a document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opmix_ray.overlap.leaks import HASHES, NOTHING

BANDS = 8
ALIKE = 0.65  # of the minima that tell two documents apart must be the same
TOLD = 12  # minima that must tell them apart
COMMON = (
    8  # documents that may have a minimum before it counts as one of a template, and a share of them all:
)
COMMON_SHARE = 0.002
LARGEST = 0.2  # of the hold-out's documents: a group that is larger goes apart
WITHIN = 1.5  # times more or less tokens than documents by themselves would give
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class HoldOut:
    """Which documents are held out, bool of shape (n,), and how many near-duplicates are not kept together for it."""

    chosen: np.ndarray
    split: int


def held_out(
    digests: np.ndarray,
    signatures: np.ndarray,
    tokens: np.ndarray,
    *,
    fraction: float,
    least: int,
    padded: bool = False,
) -> HoldOut:
    """Choose by the hash of the content; near-duplicates go together, as far as the hold-out keeps its size.

    Documents whose digests lie below a threshold are held out. Where these are less than a sequence (a small domain
    may have none), those of the least digests are.

    Args:
        digests: of the documents, uint64 of shape (n,).
        signatures: `Prints.signatures` of the same.
        tokens: of each document.
        fraction: of the documents that is held out.
        least: tokens of a sequence: without one, a hold-out or what is left for training is of no use.
        padded: whether a document makes a sequence however short it is.
    """
    by_digest = np.argsort(digests, kind="stable")  # so that the order of the files does not matter
    group = np.empty(len(digests), np.int64)
    group[by_digest] = groups(signatures[by_digest])
    sizes = np.bincount(group, minlength=len(digests))[group]
    split = sizes > max(3.0, LARGEST * fraction * len(digests))
    below = fraction * 2.0**64
    alone = digests < below
    keys = np.where(split, digests, _of_groups(digests, group))
    together = keys < below
    had = int(tokens[alone].sum())
    enough = 1 if padded else least
    apart = HoldOut(filled(alone, digests, tokens, fraction, enough), int((sizes > 1).sum()))
    if had and not _of_size(together, tokens, had, least):
        together = _nearest(
            keys, tokens, had
        )  # by chance too many groups lie below the threshold, or too few
        if not _of_size(together, tokens, had, least):
            return apart
    kept = filled(together & bool(had), keys, tokens, fraction, enough)
    if tokens[kept].sum() < enough and tokens[apart.chosen].sum() > tokens[kept].sum():
        return apart
    return HoldOut(kept, int(split.sum()))


def _of_size(chosen: np.ndarray, tokens: np.ndarray, had: int, least: int) -> bool:
    """Whether a hold-out has about the tokens that documents by themselves give, and a sequence if those have one."""
    have = int(tokens[chosen].sum())
    return had / WITHIN <= have <= had * WITHIN and not have < least <= had


def _nearest(keys: np.ndarray, tokens: np.ndarray, had: int) -> np.ndarray:
    """The documents of the least keys, those of one key together, whose tokens are nearest to `had`."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True])
    far = np.abs(np.cumsum(tokens[order])[ends] - had)
    return np.asarray(keys <= keys[order][ends[int(far.argmin())]])


def filled(
    chosen: np.ndarray, keys: np.ndarray, tokens: np.ndarray, fraction: float, least: float
) -> np.ndarray:
    """A hold-out that is of use: as it was chosen, or where that is too little, with documents of the least keys too.

    Args:
        chosen: bool of shape (n,), the documents chosen so far.
        keys: of the documents; those of one key stay together.
        tokens: of each document, or whatever its length is counted in.
        fraction: of the tokens that a hold-out that was too little gets.
        least: tokens that make a hold-out, and what is left for training, of use.

    Returns:
        bool of shape (n,). One key is chosen wherever there are two.
    """
    held = float(tokens[chosen].sum())
    if held >= least or not len(keys):
        return chosen
    chosen, whole = chosen.copy(), float(tokens.sum())
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    units = np.split(order, ends[:-1])
    # More than half is held out only where nothing else makes a sequence.
    for left, goal in ((max(least, whole / 2), max(least, fraction * whole)), (least, least)):
        for unit in units:
            size = float(tokens[unit].sum())
            if held < goal and not chosen[unit[0]] and whole - held - size >= left:
                chosen[unit] = True
                held += size
    if not chosen.any() and len(units) > 1:
        chosen[units[0]] = True
    return chosen


def _of_groups(digests: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For every document the digest that stands for its group, a hash among them; its own where it is alone."""
    order = np.lexsort((digests * _ODD, group))
    first = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]]) if len(order) else order
    chosen = np.zeros(len(digests), np.uint64)
    chosen[group[order][first]] = digests[order][first]
    return np.asarray(chosen[group])


def groups(signatures: np.ndarray) -> np.ndarray:
    """For every document one that stands for its group of near-duplicates; itself where it has none.

    Args:
        signatures: uint32 of shape (n, HASHES).
    """
    count = len(signatures)
    parents = np.arange(count)
    if not count:
        return parents

    def root(one: int) -> int:
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = int(parents[one])
        return one

    common = _common(signatures)
    width = HASHES // BANDS
    for band in range(BANDS):
        part = slice(band * width, (band + 1) * width)
        known = np.flatnonzero(~common[:, part].all(axis=1))
        rows = np.ascontiguousarray(signatures[known, part]).view(f"V{4 * width}").ravel()
        _, bucket = np.unique(rows, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        near = bucket[order[:-1]] == bucket[order[1:]]
        one, other = known[order[:-1][near]], known[order[1:][near]]
        same = signatures[one] == signatures[other]
        tells = ~(same & common[one])
        told = tells.sum(axis=1)
        alike = (told >= TOLD) & ((same & tells).sum(axis=1) >= ALIKE * told)
        for a, b in zip(one[alike].tolist(), other[alike].tolist(), strict=True):
            first, second = root(a), root(b)
            parents[max(first, second)] = min(first, second)
    return np.array([root(n) for n in range(count)], dtype=np.int64)


def _common(signatures: np.ndarray) -> np.ndarray:
    """Which minima tell nothing, bool like `signatures`: of no text, or of text that many documents have."""
    most = max(COMMON, COMMON_SHARE * len(signatures))
    found = signatures == NOTHING
    for number in range(signatures.shape[1]):
        _, inverse, counts = np.unique(signatures[:, number], return_inverse=True, return_counts=True)
        found[:, number] |= counts[inverse] > most
    return np.asarray(found)
