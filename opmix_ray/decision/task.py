"""What a decision sends out: the weights it is made about, probes to train, and the task that scores candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray
from transformers import PreTrainedModel

from opmix_ray.config import RunConfig
from opmix_ray.data.held_out import part_of, search_sets
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.old_part import probe_data
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import factors_only
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.model.load import load_model
from opmix_ray.model.probe import Probe
from opmix_ray.train.probes import ProbeTask
from opmix_ray.trials.trial import SearchTask


def load_weights(config: RunConfig, prepared: Prepared, directory: Path | None) -> PreTrainedModel:
    """The weights of a checkpoint's directory; of the configured model where there is none."""
    return load_model(
        config.model if directory is None else config.model.at(directory),
        vocab_size=prepared.vocab_size,
        eos_token_id=prepared.eos_token_id,
        seed=config.seed,
        seq_len=prepared.seq_len,
    )


def probe_task(config: RunConfig, prepared: Prepared, name: str, old: Mixture, stream: str) -> ProbeTask:
    """What one component's probe is to be trained on, and how."""
    batch = config.probe.batch_size or config.train.batch_size
    return ProbeTask(
        name=name,
        data=probe_data(name, old, config.probe.new_share).shares,
        stream=stream,
        batch_size=batch,
        micro_batch_size=config.train.micro_batch_size or batch,
        seed=config.seed,
        probe=config.probe,
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
    """Put factors and held-out sequences beside a base that is already in the object store.

    Args:
        sequences: of each set, at most; None: `search.sequences`.
    """
    factors = factors_only(ProbeSet.build(model, probes, domains))
    sets = search_sets(prepared, config.evaluation.sequences, config.search.sequences)
    sets = {name: part_of(held, slice(0, sequences)) for name, held in sets.items()}
    task = SearchTask.put(
        base,
        factors,
        sets,
        config.objective(),
        batch_size=config.evaluation.batch_size,
        autocast=config.model.autocast,
    )
    return task, factors
