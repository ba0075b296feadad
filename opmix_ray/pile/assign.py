"""Which domain a document belongs to: found once in a sample of a pile, then said of any document.

    found = find_groups(texts, 8, seed=0)
    found.assigner.assign(texts)
    found.assigner.save(path)

Text becomes counts of hashed words and of hashed triples of characters. k-means on their leading singular vectors, in
which a document weighs by its length, gives starts. Each is refined as a mixture of unigram models in which no document
speaks for itself, and the one under which the sample is likeliest is taken. So a domain is what is written in the same
words, and a thousand short entries do not outweigh a hundred long ones.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from opmix_ray.errors import UserError

BINS = 1 << 15  # of words, and as many of triples
DIMENSIONS = 48  # that k-means works in
STARTS, HALF_STARTS = 12, 6  # of the sample, and of a half of it
STARTS_FROM = (
    (False, 1.0),
    (True, 1.0),
    (True, 0.5),
)  # coordinates of length 1?; power of a document's length
FINALISTS, ROUNDS = 3, 6  # starts that are refined further, and how often
EVIDENCE = 10.0  # neighbouring words and triples tell the same thing: so many of them count as one
SMOOTHING = 0.01  # of all counts, added to each domain, spread as in the whole sample
REPEATS = 4  # fits on halves of the sample, which say how stable the domains are
VERSION = 1

_WORDS = HashingVectorizer(n_features=BINS, alternate_sign=False, norm=None, dtype=np.float32)
_TRIPLES = HashingVectorizer(
    n_features=BINS, alternate_sign=False, norm=None, analyzer="char", ngram_range=(3, 3), dtype=np.float32
)


@dataclass(frozen=True)
class Stability:
    """How alike the domains of two fits are, over pairs of fits on random halves of the sample: means."""

    adjusted_rand: float
    mutual_information: float


class TextAssigner:
    """Domains by words and characters.

    Args:
        scores: (domains, 2 * BINS), the evidence of each bin for each domain, in nats.
        prior: (domains,), logarithms of the domains' parts of all documents.
    """

    kind = "text"

    def __init__(self, scores: np.ndarray, prior: np.ndarray) -> None:
        self.scores, self.prior = scores.astype(np.float32), prior.astype(np.float32)

    def evidence(self, texts: Sequence[str], vectors: np.ndarray | None = None) -> np.ndarray:
        """(documents, domains): the greatest of a row is the document's domain."""
        return _evidence(counts(texts), self.scores, self.prior)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file has to keep."""
        return {"scores": self.scores, "prior": self.prior}


class VectorAssigner:
    """Domains by the nearest of their centres among vectors of length 1.

    Args:
        centres: (domains, numbers).
    """

    kind = "vectors"

    def __init__(self, centres: np.ndarray) -> None:
        self.centres = centres.astype(np.float32)

    def evidence(self, texts: Sequence[str], vectors: np.ndarray | None = None) -> np.ndarray:
        """(documents, domains): the greatest of a row is the document's domain."""
        assert vectors is not None
        points = normalize(np.asarray(vectors, dtype=np.float32))
        return 2 * points @ self.centres.T - (self.centres**2).sum(axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file has to keep."""
        return {"centres": self.centres}


Assigner = TextAssigner | VectorAssigner


@dataclass(frozen=True)
class Groups:
    """What was found in a sample.

    Args:
        assigner: says it of other documents.
        labels: number of the domain of each document of the sample.
        margins: by how much its domain is ahead of the next one, per square root of its length.
        stability: None where there are too few documents for halves.
    """

    assigner: Assigner
    labels: np.ndarray
    margins: np.ndarray
    stability: Stability | None


def counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """(documents, 2 * BINS): how often each hashed word and each hashed triple of characters is there."""
    padded = [f" {text} " for text in texts]
    return sparse.hstack(
        [_WORDS.transform(texts), _TRIPLES.transform(padded)], format="csr", dtype=np.float32
    )


def find_groups(
    texts: Sequence[str], domains: int, *, vectors: np.ndarray | None = None, seed: int = 0
) -> Groups:
    """Sort a sample into domains; the same for the same sample and seed.

    Args:
        texts: of the documents.
        domains: how many.
        vectors: (documents, numbers) to go by instead of the texts.
        seed: of everything random.

    Raises:
        UserError: the documents are of fewer kinds than that.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    features = counts(texts) if vectors is None else np.asarray(vectors, dtype=np.float32)
    with threadpool_limits(limits=1):  # sums in another order would be other numbers
        labels, assigner = _fit(features, lengths, domains, seed)
        if len(np.unique(labels)) < domains:
            raise UserError(
                f"only {len(np.unique(labels))} kinds can be told apart in these documents",
                key="--domains",
                value=domains,
                remedy="ask for fewer, or give more documents",
            )
        stability = _stability(features, lengths, domains, seed)
        evidence = _of(assigner, features)
    ordered = np.sort(evidence, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / np.sqrt(lengths)
    return Groups(assigner, labels, margins, stability)


Features = Any  # counts of a sample (sparse), or its vectors (dense): rows are documents


def _fit(
    features: Features, lengths: np.ndarray, domains: int, seed: int, starts: int = STARTS
) -> tuple[np.ndarray, Assigner]:
    if not sparse.issparse(features):
        return _fit_vectors(features, domains, seed)
    points = _coordinates(features, lengths, seed)
    told: dict[bytes, tuple[float, np.ndarray]] = {}
    for start in range(starts):
        unit, weights = STARTS_FROM[start % len(STARTS_FROM)]
        means = KMeans(domains, n_init=1, random_state=seed * STARTS + start)
        labels = _quietly(means, normalize(points) if unit else points, lengths**weights)
        told[labels.tobytes()] = _refined(features, labels, domains, 2)
    best = sorted(told.values(), key=lambda one: -one[0])[:FINALISTS]
    _, labels = max(
        (_refined(features, labels, domains, ROUNDS) for _, labels in best), key=lambda one: one[0]
    )
    assigner = _profiles(features, labels, domains)[0]
    return _of(assigner, features).argmax(axis=1), assigner


def _quietly(means: KMeans, points: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Labels of k-means, which warns of what is an error of ours: fewer kinds than asked for."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(means.fit(points, sample_weight=weights).labels_)


def _fit_vectors(vectors: np.ndarray, domains: int, seed: int) -> tuple[np.ndarray, VectorAssigner]:
    points = normalize(vectors)
    means = KMeans(domains, n_init=STARTS, random_state=seed)
    _quietly(means, points, None)
    assigner = VectorAssigner(means.cluster_centers_)
    return assigner.evidence([], points).argmax(axis=1), assigner


def _coordinates(features: sparse.csr_matrix, lengths: np.ndarray, seed: int) -> np.ndarray:
    """(documents, dimensions): leading singular vectors of damped counts, rare bins weighing more."""
    both = []
    for half in (features[:, :BINS], features[:, BINS:]):
        damped = half.copy()
        damped.data = 1 + np.log(damped.data)
        seen = np.bincount(damped.indices, minlength=BINS)
        rare = np.log((1 + len(lengths)) / (1 + seen)) + 1
        both.append(normalize(damped.multiply(rare[None, :].astype(np.float32)).tocsr()))
    damped = sparse.hstack(both, format="csr", dtype=np.float32)
    size = min(DIMENSIONS, len(lengths) - 1, damped.shape[1] - 1)
    if size < 1:
        return np.zeros((len(lengths), 1))
    reduced = TruncatedSVD(size, n_iter=3, random_state=seed)
    scale = np.sqrt(lengths / lengths.mean()).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # of documents that are all alike
        reduced.fit(damped.multiply(scale[:, None]).tocsr())
    return np.asarray(reduced.transform(damped), dtype=np.float64)


def _refined(
    features: sparse.csr_matrix, labels: np.ndarray, domains: int, rounds: int
) -> tuple[float, np.ndarray]:
    """A start after some rounds of hard expectation and maximisation, and its log-likelihood.

    No document speaks for itself: it is judged by what the others of its domain hold. Where that leaves a domain empty,
    the start stays as it is and is as unlikely as can be.
    """
    first, likelihood = labels, -np.inf
    rows = np.repeat(np.arange(len(labels), dtype=np.int32), np.diff(features.indptr))
    size = np.asarray(features.sum(axis=1), dtype=np.float64)[:, 0]
    for _ in range(rounds):
        assigner, expected = _profiles(features, labels, domains)
        own = expected[labels[rows], features.indices]
        without = features.data * np.log1p(-features.data / own)
        total = expected.sum(axis=1, dtype=np.float64)[labels]
        itself = np.bincount(rows, without, minlength=len(labels)) - size * np.log1p(-size / total)
        evidence = _of(assigner, features)
        evidence[np.arange(len(labels)), labels] += itself / EVIDENCE
        new, likelihood = evidence.argmax(axis=1), float(evidence.max(axis=1).sum(dtype=np.float64))
        if (np.bincount(new, minlength=domains) == 0).any():
            return -np.inf, first
        if (new == labels).all():
            break
        labels = new
    return likelihood, labels


def _profiles(
    features: sparse.csr_matrix, labels: np.ndarray, domains: int
) -> tuple[TextAssigner, np.ndarray]:
    """What documents of each domain hold, as an assigner and as (domains, 2 * BINS) counts, smoothed."""
    everything = np.asarray(features.sum(axis=0), dtype=np.float64)[0]
    base = (everything + 0.01) / (everything.sum() + 0.01 * len(everything))
    member = sparse.csr_matrix(
        (np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))), (domains, len(labels))
    )
    expected = (member @ features).toarray().astype(np.float64) + SMOOTHING * everything.sum() * base
    size = np.bincount(labels, minlength=domains)
    scores = (np.log(expected / expected.sum(axis=1, keepdims=True)) - np.log(base)) / EVIDENCE
    prior = np.log((size + 1) / (len(labels) + domains))
    return TextAssigner(scores, prior), expected.astype(np.float32)


def _evidence(features: sparse.csr_matrix, scores: np.ndarray, prior: np.ndarray) -> np.ndarray:
    return np.asarray(features @ scores.T) + prior


def _of(assigner: Assigner, features: Features) -> np.ndarray:
    if isinstance(assigner, VectorAssigner):
        return assigner.evidence([], features)
    return _evidence(features, assigner.scores, assigner.prior)


def _stability(features: Features, lengths: np.ndarray, domains: int, seed: int) -> Stability | None:
    documents = len(lengths)
    if documents < 4 * domains:
        return None
    said = []
    for repeat in range(REPEATS):
        half = np.random.default_rng([seed, repeat]).permutation(documents)[: documents // 2]
        half.sort()
        _, assigner = _fit(features[half], lengths[half], domains, seed + 1 + repeat, HALF_STARTS)
        said.append(_of(assigner, features).argmax(axis=1))
    pairs = [(one, two) for k, one in enumerate(said) for two in said[:k]]
    return Stability(
        float(np.mean([adjusted_rand_score(*pair) for pair in pairs])),
        float(np.mean([normalized_mutual_info_score(*pair) for pair in pairs])),
    )


def save(assigner: Assigner, path: Path) -> None:
    """Write an assigner as arrays of numbers."""
    arrays: dict[str, Any] = {
        "version": np.array(VERSION),
        "kind": np.array(assigner.kind),
        **assigner.arrays(),
    }
    np.savez_compressed(path, **arrays)


def load(path: Path, domains: int) -> Assigner:
    """Read an assigner of so many domains.

    Raises:
        UserError: there is none, or it is broken.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        kind, version = str(found.pop("kind")), int(found.pop("version"))
        shapes = {name: array.shape for name, array in found.items()}
        wanted = {"scores": (domains, 2 * BINS), "prior": (domains,)}
        if version == VERSION and kind == "text" and shapes == wanted:
            return TextAssigner(found["scores"], found["prior"])
        if version == VERSION and kind == "vectors" and len(found["centres"]) == domains:
            return VectorAssigner(found["centres"])
    except FileNotFoundError:
        raise UserError(
            "holds no domains that were discovered", key="--like", value=path.parent,
            remedy="name the output of an earlier `opmix discover`",
        ) from None  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    raise UserError(
        "is broken, or of another version", file=path, key="--like", remedy="discover the domains again"
    )
