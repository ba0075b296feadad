"""What a decision works on: text to count, weights, probes to train, and the task that scores candidates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import ray
from transformers import PreTrainedModel

from opmix_ray.config import ProbeConfig, RunConfig
from opmix_ray.counts.ngrams import SAMPLE, Counts, DataLeft, Held, count_ngrams, sample_rows
from opmix_ray.data.held_out import HeldOut, part_of, search_sets, split_counts, texts_of, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.old_part import probe_data
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import forward_flops
from opmix_ray.model.base import BaseModel, factors_only, model_from
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.model.load import load_model
from opmix_ray.model.loss import evaluate_sets, target_losses
from opmix_ray.model.probe import Probe
from opmix_ray.model.spread import visible_devices
from opmix_ray.train.probes import Failed, Job, ProbeTask, side_by_side
from opmix_ray.trials.trial import SearchTask

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


def load_weights(config: RunConfig, prepared: Prepared, directory: Path | None) -> PreTrainedModel:
    """The weights of a checkpoint's directory; of the configured model where there is none."""
    return load_model(
        config.model if directory is None else config.model.at(directory),
        vocab_size=prepared.vocab_size,
        eos_token_id=prepared.eos_token_id,
        seed=config.seed,
        seq_len=prepared.seq_len,
    )


def probe_task(
    config: RunConfig,
    prepared: Prepared,
    name: str,
    old: Mixture,
    stream: str,
    probe: ProbeConfig | None = None,
) -> ProbeTask:
    """What one component's probe is to be trained on, and how; its settings are `probe` or the run's."""
    probe = probe or config.probe
    batch = probe.batch_size or config.train.batch_size
    return ProbeTask(
        name=name,
        data=probe_data(name, old, probe.new_share).shares,
        stream=stream,
        batch_size=batch,
        micro_batch_size=config.train.micro_batch_size or batch,
        seed=config.seed,
        probe=probe,
        optimizer=config.train.optimizer,
        model=config.model,
        prepared=prepared,
        retries=config.cluster.max_retries,
    )


def put_task(
    config: RunConfig,
    prepared: Prepared,
    model: PreTrainedModel,
    base: ray.ObjectRef,
    probes: Sequence[Probe],
    domains: Sequence[str],
    sequences: int | None = None,
) -> tuple[SearchTask, ProbeSet]:
    """Put factors and held-out sequences into the object store, where the base is already.

    Args:
        sequences: of each set, at most; None: `search.sequences`.
    """
    factors = factors_only(ProbeSet.build(model, probes, domains))
    sets = search_sets(prepared, config.evaluation.sequences, config.search.sequences, config.decided_on())
    sets = {name: part_of(held, slice(0, sequences)) for name, held in sets.items()}
    task = SearchTask.put(
        base,
        factors,
        sets,
        config.objective_of(prepared.bytes_per_token),
        batch_size=config.evaluation.batch_size,
        autocast=config.model.autocast,
    )
    return task, factors


@dataclass(frozen=True)
class Measured:
    """The evaluation sets under the weights of a decision.

    Args:
        losses: nats per token by set, or the rate of wrong answers.
        tokens, flops, seconds: what it cost.
        targets: nats of every target that counts by set, where they were asked for one by one.
    """

    losses: dict[str, float]
    tokens: float
    flops: float
    seconds: float
    targets: dict[str, np.ndarray] = field(default_factory=dict)


def measure_now(config: RunConfig, prepared: Prepared, base: ray.ObjectRef, sequences: int) -> Measured:
    """Measure the sets that a decision looks at, where neither the run nor a candidate has measured them.

    Args:
        config: the run.
        prepared: its data.
        base: the weights.
        sequences: of each set, at most.
    """
    sets = search_sets(prepared, config.evaluation.sequences, config.search.sequences, config.decided_on())
    sets = {name: part_of(held, slice(0, sequences)) for name, held in sets.items()}
    return measure_in_task(config, base, sets)


def measure_in_task(
    config: RunConfig, base: ray.ObjectRef, sets: HeldOut, *, targets: bool = False
) -> Measured:
    """Measure held-out sets in a Ray task.

    Args:
        config: the run.
        base: its weights.
        sets: what is measured; sequences alone where `targets` is set.
        targets: give the loss of every single target instead of the sets' means.
    """
    arguments = (base, sets, config.evaluation.batch_size, config.model.autocast, config.probe.gpus, targets)
    job = Job("the loss of now", arguments, config.probe, config.cluster.max_retries)
    [(_, found)] = side_by_side(_measure, [job], "probe", None)
    if isinstance(found, Failed):
        raise found.cause
    return cast(Measured, found)


def _measure(
    base: BaseModel, sets: HeldOut, batch_size: int, autocast: bool, gpus: float, targets: bool
) -> Measured:
    began = time.monotonic()
    model = model_from(base, visible_devices(gpus))
    losses: dict[str, float] = {}
    single: dict[str, np.ndarray] = {}
    if targets:
        for name, (ids, mask) in texts_of(sets).items():
            single[name] = target_losses(model, ids, mask, batch_size, autocast=autocast)
    else:
        found = evaluate_sets(model, sets, batch_size, autocast=autocast)
        losses = {name: one.mean for name, one in found.items()}
    tokens = float(sum(map(tokens_of, sets.values())))
    length = max(held[0].shape[1] for held in texts_of(sets).values()) if texts_of(sets) else 1
    flops = tokens * forward_flops(model, 1.0, length)
    return Measured(losses, tokens, flops, time.monotonic() - began, single)
