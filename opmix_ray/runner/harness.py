"""lm-evaluation-harness tasks on the model that a run leaves, once, on one of its machines."""

from __future__ import annotations

from typing import Any

import ray

from opmix_ray.config import RunConfig
from opmix_ray.model.harness import measure_tasks
from opmix_ray.node import use_own_threads
from opmix_ray.output.state import HARNESS
from opmix_ray.storage import Storage


def run_harness(config: RunConfig, storage: Storage) -> dict[str, Any]:
    """Scores by task and metric, measured or found; empty where no task is named.

    Args:
        config: the run.
        storage: its output, with the model in it.
    """
    if config.evaluation.harness is None:
        return {}
    if not storage.exists(HARNESS):
        measure = ray.remote(_measure).options(
            num_cpus=config.train.cpus_per_worker, num_gpus=config.train.gpus_per_worker, name="harness"
        )
        storage.write_json(HARNESS, ray.get(measure.remote(storage.uri, config)))
    found: dict[str, Any] = storage.read_json(HARNESS)
    return found


def _measure(uri: str, config: RunConfig) -> dict[str, Any]:
    assert config.evaluation.harness is not None
    use_own_threads()
    with Storage(uri).local("model") as directory:
        return measure_tasks(
            directory,
            config.evaluation.harness,
            batch_size=config.evaluation.batch_size,
            trust_remote_code=config.model.trust_remote_code,
        )
