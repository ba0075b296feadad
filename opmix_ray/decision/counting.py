"""Counts of the evaluation sets' words in the domains' training text, for one decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from opmix_ray.counts.ngrams import SAMPLE, Counts, DataLeft, Held, count_ngrams, sample_rows
from opmix_ray.data.held_out import split_counts
from opmix_ray.data.prepare import Prepared
from opmix_ray.mixture import Mixture

MOST_SEQUENCES = 256  # held-out sequences of a set whose words are counted
MOST_TOKENS = 1 << 22  # counted over all domains


def texts_for(
    prepared: Prepared, sets: Iterable[str], *, reported: int, searched: int, most: int | None = None
) -> dict[str, Held]:
    """Held-out sequences by evaluation set, of which the words are counted; sets of questions are left out.

    Args:
        prepared: the run's data.
        sets: names of those that matter.
        reported, searched: held-out sequences per set for reports and for decisions; the former are not looked at.
        most: sequences of each set; None: `MOST_SEQUENCES`, or what decisions see where that is more.
    """
    held = {}
    for name in sets:
        domain = prepared.eval_sets[name]
        if domain.questions() is not None:
            continue
        count = domain.eval_sequences
        first, own = split_counts(count, reported, searched)
        start = first if count > 1 else 0
        wanted = max(own, MOST_SEQUENCES) if most is None else most
        held[name] = domain.evaluation().batch(range(start, min(count, start + wanted)))
    return held


def counts_for(
    prepared: Prepared,
    held: Mapping[str, Held],
    current: Mixture,
    data: DataLeft,
    nats: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Counts]:
    """Counts by evaluation set, each weighted for the set.

    Args:
        prepared: the run's data.
        held: sequences by set, of `texts_for`.
        current: mixture in force, over the stage's domains.
        data: what the stage reads.
        nats: what the model loses at every target of the sequences that counts; none: it is not asked.
    """
    if not held:
        return {}
    most = min(SAMPLE, MOST_TOKENS // max(1, len(current)))
    samples = {}
    for name in current:
        store = prepared.domains[name].train()
        samples[name] = store.batch(sample_rows(len(store), store.seq_len, most))
    found = count_ngrams(held, samples, prepared.vocab_size, nats)
    even = np.full(len(current), 1 / len(current))
    return {name: counts.for_the_set(even, data) for name, counts in found.items()}


def least_losses(
    prepared: Prepared, sets: Iterable[str], domains: list[str], tokens: float
) -> dict[str, float]:
    """What the n-gram model of the best of many mixtures loses on each set after so many tokens, nats per token.

    Args:
        prepared: the run's data.
        sets: names; those of questions are left out.
        domains: that are trained on.
        tokens: of the whole run.
    """
    sizes = np.array([float(prepared.domains[name].train_tokens) for name in domains])
    data = DataLeft(tokens, np.zeros(len(domains)), sizes)
    held = texts_for(prepared, sets, reported=0, searched=MOST_SEQUENCES)
    counts = counts_for(prepared, held, Mixture.uniform(domains), data)
    pool = np.random.default_rng(0).dirichlet(np.full(len(domains), 0.5), 256)
    pool = np.vstack([pool, np.eye(len(domains)), np.full((1, len(domains)), 1 / len(domains))])
    return {name: float(one.loss(pool, data).min()) for name, one in counts.items()}
