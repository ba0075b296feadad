"""What a mixture teaches, read off the data alone: the held-out loss of a smoothed n-gram model of the mixture.

    samples = {"code": (ids, mask), ...}                       # training sequences by domain
    counts = count_ngrams({"prose": (ids, mask)}, samples, vocabulary=4096)["prose"]
    data = DataLeft(tokens_left=1e6, used=[...], distinct=[...])
    counts.loss(mixtures, data)                                # (n,) nats per token

A trained model's loss on a text falls with how often the mixture shows it the text's words in their contexts, and each
further sight is worth less. An n-gram model says so at the price of counting (no pass of the model): which domains
serve a set, that a second domain of another kind adds more than more of the first, that a domain is learned at once or
never, and that two domains are the same thing. Jelinek and Mercer's interpolation with weights that follow the counts:

    P_k(w | h) = (c(h, w) + beta_k P_(k-1)(w | h')) / (c(h) + beta_k),      P_0 = 1 / vocabulary

with `c` the counts in the tokens that the run will have read: a domain's sample, scaled. Text read again counts for
less: `U + U R (1 - exp(-r / R))` after `r` repeats of `U` tokens (Muennighoff et al. 2023, arXiv 2305.16264), and what
is read too often is learned by heart and does harm (Hernandez et al. 2022, arXiv 2205.10487). That
n-grams tell which data serve a target is known from data selection (Xie et al. 2023, arXiv 2302.03169).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize

SMOOTHING = (3000.0, 2400.0, 1200.0)  # beta of one, two and three words: docs/decisions.md
REPEATS = 8.0  # R; Muennighoff et al. have 15 for large models, small ones tire sooner: docs/decisions.md
ENOUGH = 15.0  # passes over a domain after which more do harm
HARM = 3.0  # nats per token that far more do, if all that is read were read so often: docs/decisions.md
LEARNED = 3.0  # times as many passes again, until most of it is learned by heart
READ_BEFORE = 0.03  # what a token read before the stage counts, where one read in it counts 1: models forget
APART = 0.03  # nats that a domain must cost a set before it is counted as nothing for it: docs/decisions.md
FACTORS = 2.0 ** np.arange(-7, 0.125, 0.5)  # of SMOOTHING
KNOWN = 0.25  # weight of what the model itself says of a token, beside the n-gram model: docs/decisions.md
SAMPLE = 1 << 19  # tokens of a domain that are counted
POSITIONS = 2048  # target tokens of a set that are kept

Held = tuple[np.ndarray, np.ndarray]  # ids (n, L) and mask (n, L): whether the token counts in the loss


@dataclass(frozen=True)
class DataLeft:
    """What a stage will read, domain by domain.

    Args:
        tokens_left: of the stage.
        used: (D,) tokens read before.
        distinct: (D,) training tokens of each domain.
    """

    tokens_left: float
    used: np.ndarray
    distinct: np.ndarray

    def effective(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that count after the stage, (n, D), and their derivative by the shares, (n, D)."""
        distinct = np.maximum(self.distinct, 1.0)
        passes = (READ_BEFORE * self.used + shares * self.tokens_left) / distinct
        again = np.maximum(passes - 1, 0.0)
        faded = np.exp(-again / REPEATS)
        worth = np.where(passes <= 1, passes, 1 + REPEATS * (1 - faded))
        return worth * distinct, np.where(passes <= 1, 1.0, faded) * self.tokens_left

    def harm(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nats per token that are lost to text read too often, (n,), and their derivative by the shares, (n, D)."""
        distinct = np.maximum(self.distinct, 1.0)
        above = np.maximum((self.used + shares * self.tokens_left) / distinct / ENOUGH - 1, 0.0) / LEARNED
        left = np.exp(-(above**1.5))
        steep = 1.5 * above**0.5 * left * self.tokens_left / distinct / ENOUGH / LEARNED
        return HARM * (shares * (1 - left)).sum(axis=-1), HARM * (1 - left + shares * steep)


@dataclass(frozen=True)
class Counts:
    """How often each domain's sample shows the words of one evaluation set in their contexts.

    Args:
        words: (K, N, D) counts of the last k + 1 words, for N target tokens and D domains.
        contexts: (K, N, D) counts of the words before, followed by any that counts.
        weights: (N,) of the target tokens, sum 1.
        sampled: (D,) tokens counted.
        vocabulary: size.
        known: (N,) how likely the model finds each target before the stage; None: it knows nothing worth asking for.
        smooth: factor of `SMOOTHING`, see `smoothing_of`.
    """

    words: np.ndarray
    contexts: np.ndarray
    weights: np.ndarray
    sampled: np.ndarray
    vocabulary: int
    known: np.ndarray | None = None
    smooth: float = 1.0

    def loss(self, shares: np.ndarray, data: DataLeft) -> np.ndarray:
        """Held-out loss of the n-gram model of each mixture, (n, D) -> (n,), nats per token.

        Where the model is known, n-grams and the model predict each token together, as nearest neighbours and a model
        do (Khandelwal et al. 2020, arXiv 1911.00172): what the model knows already cannot be learned again.
        """
        shares = np.atleast_2d(shares)
        return self._losses(self._seen(shares, data)[0]) + data.harm(shares)[0]

    def gradient(self, shares: np.ndarray, data: DataLeft) -> np.ndarray:
        """Its derivative by the shares, (n, D) -> (n, D)."""
        shares = np.atleast_2d(shares)
        seen, by_share = self._seen(shares, data)
        return np.array([self._slope(row) for row in seen]) * by_share + data.harm(shares)[1]

    def _seen(self, shares: np.ndarray, data: DataLeft) -> tuple[np.ndarray, np.ndarray]:
        """How often each domain's sample was read after the stage, (n, D), and its derivative by the shares."""
        effective, by_share = data.effective(shares)
        # A run longer than the samples is read as one as long as they are: counts beyond them are not known.
        length = float(data.used.sum() + data.tokens_left)
        scale = min(1.0, float(self.sampled.max()) / max(1.0, length)) / np.maximum(self.sampled, 1.0)
        return effective * scale, by_share * scale

    def _slope(self, seen: np.ndarray) -> np.ndarray:
        likely = np.full(len(self.weights), 1 / self.vocabulary)
        by_seen = np.zeros((len(self.weights), len(seen)))
        for beta, words, contexts in zip(SMOOTHING, self.words, self.contexts, strict=True):
            beta *= self.smooth
            below = contexts @ seen + beta
            likely = (words @ seen + beta * likely) / below
            by_seen = (words + beta * by_seen - likely[:, None] * contexts) / below[:, None]
        part = 1.0 if self.known is None else 1 - KNOWN
        return -((part * self.weights / self._with_known(likely)) @ by_seen)

    def _with_known(self, likely: np.ndarray) -> np.ndarray:
        """Probabilities of the targets, (N,) or (N, n), together with the model's own."""
        if self.known is None:
            return likely
        known = self.known if likely.ndim == 1 else self.known[:, None]
        return KNOWN * known + (1 - KNOWN) * likely

    def for_the_set(self, share: np.ndarray, data: DataLeft) -> Counts:
        """The counts weighted by how far each domain serves the set at a mixture (D,).

        A trained model tells from the context which kind of text it reads, and does not mix in what it learned from
        others. So the weights, each in [0, 1], are those under which the n-gram model's loss is least, held to 1 by
        `APART`: small differences between domains are the sample's.
        """
        seen = self._seen(share[None], data)[0][0]

        def cost(serves: np.ndarray) -> tuple[float, np.ndarray]:
            held = APART * float(np.square(1 - serves).sum())
            slope = self._slope(serves * seen) * seen - 2 * APART * (1 - serves)
            return float(self._losses((serves * seen)[None])[0]) + held, slope

        found = minimize(
            cost, np.ones(len(seen)), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(seen),
            options={"maxiter": 40},
        )  # fmt: skip
        return replace(self, words=self.words * found.x, contexts=self.contexts * found.x)

    def _losses(self, seen: np.ndarray) -> np.ndarray:
        """Loss for how often each domain's sample was read, (n, D) -> (n,); 64 at a time, for memory."""
        found = np.empty(len(seen))
        for first in range(0, len(seen), 64):
            part = slice(first, first + 64)
            likely = np.full((len(self.weights), 1), 1 / self.vocabulary)
            for beta, words, contexts in zip(SMOOTHING, self.words, self.contexts, strict=True):
                beta *= self.smooth
                likely = (words @ seen[part].T + beta * likely) / (contexts @ seen[part].T + beta)
            found[part] = -self.weights @ np.log(self._with_known(likely))
        return found

    def to_text(self) -> str:
        """Everything as one short string."""
        block = io.BytesIO()
        arrays: dict[str, Any] = {
            "words": self.words.astype(np.float32), "contexts": self.contexts.astype(np.float32),
            "weights": self.weights, "sampled": self.sampled, "vocabulary": self.vocabulary, "smooth": self.smooth,
        }  # fmt: skip
        if self.known is not None:
            arrays["known"] = self.known
        np.savez_compressed(block, **arrays)
        return base64.b64encode(block.getvalue()).decode()

    @classmethod
    def from_text(cls, text: str) -> Counts:
        """What `to_text` wrote."""
        with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as found:
            return cls(
                found["words"].astype(np.float64), found["contexts"].astype(np.float64),
                found["weights"], found["sampled"], int(found["vocabulary"]),
                found.get("known"), float(found.get("smooth", 1.0)),
            )  # fmt: skip


def smoothing_of(
    counts: Mapping[str, Counts], now: Mapping[str, float], shares: np.ndarray, data: DataLeft,
    unread: Collection[str] = (),
) -> float:  # fmt: skip
    """The factor of `SMOOTHING` at which no stage leaves a model worse than it is, at most 1.

    `SMOOTHING` is that of models of 80,000 weights in their first thousand steps. A longer trained or larger one learns
    more from each text that it reads, and has more to lose where it reads less. Where counting says that the mixture in
    force would leave a set worse than now, it is smoothed too much. The middle one of the sets' own factors is taken.

    Args:
        counts: by set.
        now: loss by set, nats per token; of a model that has read `data.used` and nothing else.
        shares: (D,) in force.
        data: of the stage to decide on.
        unread: domains that were not read: what is lost on them now says nothing.
    """
    if data.used.sum() <= 0:
        return 1.0
    factors = [
        _factor(one, now[name], shares, data)
        for name, one in counts.items()
        if name not in unread and np.isfinite(now.get(name, np.nan))
    ]
    return float(np.median(factors)) if factors else 1.0


def smoothed(
    counts: Mapping[str, Counts], now: Mapping[str, float], shares: np.ndarray, data: DataLeft,
    unread: Collection[str] = (),
) -> dict[str, Counts]:  # fmt: skip
    """The counts with the factor of `smoothing_of`, which says what the arguments are."""
    smooth = smoothing_of(counts, now, shares, data, unread)
    return {name: replace(one, smooth=smooth) for name, one in counts.items()}


def _factor(counts: Counts, now: float, shares: np.ndarray, data: DataLeft) -> float:
    """The greatest factor at which the mixture ends no worse than `now`; where there is none, the least."""
    levels = np.array([replace(counts, smooth=s).loss(shares[None], data)[0] for s in FACTORS])
    kept = np.flatnonzero(levels <= now)
    if not len(kept):
        return float(FACTORS[0])
    last = int(kept[-1])
    if last == len(FACTORS) - 1:
        return 1.0
    return float(np.exp(np.interp(now, levels[last : last + 2], np.log(FACTORS[last : last + 2]))))


def count_ngrams(
    sets: Mapping[str, Held], samples: Mapping[str, Held], vocabulary: int,
    nats: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Counts]:  # fmt: skip
    """Count the words of every set in every domain's sample.

    Args:
        sets: held-out sequences by evaluation set.
        samples: training sequences by domain.
        vocabulary: size of the tokenizer's.
        nats: what the model loses at every target of a set that counts, in order; none: it is not asked.
    """
    orders = len(SMOOTHING)
    targets = {name: _targets(held, orders) for name, held in sets.items()}
    every = np.concatenate([rows for rows, _ in targets.values()])
    words = np.zeros((orders, len(every), len(samples)))
    contexts = np.zeros_like(words)
    wanted = [
        (
            np.unique(_key(every[:, orders - k - 1 :], vocabulary)),
            np.unique(_key(every[:, orders - k - 1 : -1], vocabulary)),
        )
        for k in range(orders)
    ]
    for column, held in enumerate(samples.values()):
        rows, _ = _targets(held, orders, most=None)
        for k in range(orders):
            for out, keys, end in ((words, wanted[k][0], None), (contexts, wanted[k][1], -1)):
                found = _key(rows[:, orders - k - 1 : end], vocabulary)
                at = np.searchsorted(keys, found)
                at[at == len(keys)] = 0
                hits = np.bincount(at[keys[at] == found], minlength=len(keys))
                asked = _key(every[:, orders - k - 1 : end], vocabulary)
                out[k, :, column] = hits[np.searchsorted(keys, asked)]
    sampled = np.array([float(mask[:, orders - 1 :].sum()) for _, mask in samples.values()])
    result, start = {}, 0
    for name, (rows, weights) in targets.items():
        part = slice(start, start + len(rows))
        start = part.stop
        known = None if nats is None else np.exp(-_of_targets(sets[name], nats[name], orders))
        result[name] = Counts(words[:, part], contexts[:, part], weights, sampled, vocabulary, known)
    return result


def _targets(held: Held, orders: int, most: int | None = POSITIONS) -> tuple[np.ndarray, np.ndarray]:
    """The last `orders` words up to every target that counts, (N, orders), and weights (N,)."""
    ids, mask = held
    windows = np.lib.stride_tricks.sliding_window_view(ids, orders, axis=1)
    rows = _thinned(windows[mask[:, orders - 1 :]], most)
    return rows, np.full(len(rows), 1 / max(1, len(rows)))


def _of_targets(held: Held, nats: np.ndarray, orders: int) -> np.ndarray:
    """Of the losses of all targets that count, (T,), those of `_targets`, (N,)."""
    mask = held[1]
    every = np.zeros(mask.shape)
    every[:, 1:][mask[:, 1:]] = nats
    return _thinned(every[:, orders - 1 :][mask[:, orders - 1 :]], POSITIONS)


def _thinned(rows: np.ndarray, most: int | None) -> np.ndarray:
    """At most so many, evenly spread."""
    if most is None or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _key(rows: np.ndarray, vocabulary: int) -> np.ndarray:
    """One number for each row of words, (N, k) -> (N,); k may be 0."""
    key = np.zeros(len(rows), np.int64)
    for column in rows.T:
        key = key * vocabulary + column
    return key


def sample_rows(count: int, length: int, most: int = SAMPLE) -> Sequence[int]:
    """Which of a domain's sequences are counted: all, or so many that `most` tokens come together, evenly spread."""
    wanted = max(1, most // max(1, length))
    if count <= wanted:
        return range(count)
    return [int(i) for i in np.linspace(0, count - 1, wanted).round()]


def as_json(data: DataLeft) -> dict[str, Any]:
    """JSON values."""
    return {
        "tokens_left": data.tokens_left,
        "used": np.asarray(data.used).tolist(),
        "distinct": np.asarray(data.distinct).tolist(),
    }
