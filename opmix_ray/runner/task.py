"""From a configuration to a `SearchTask`: probes trained, everything in the object store. For scripts.

task = make_task(load_config("examples/quickstart.yaml"))
tune.run(tune.with_parameters(MixtureTrial, task=task), ...)
"""

from __future__ import annotations

from pathlib import Path

import ray

from opmix_ray.config import RunConfig
from opmix_ray.decision.old_part import choose_components
from opmix_ray.decision.task import load_weights, probe_task, put_task
from opmix_ray.model.base import snapshot
from opmix_ray.runner.base import resolved
from opmix_ray.runner.stage_start import start_stage
from opmix_ray.runner.validate import validate
from opmix_ray.train.probes import train_all
from opmix_ray.trials.space import read_space
from opmix_ray.trials.trial import SearchTask


def make_task(config: RunConfig, *, model: Path | None = None) -> SearchTask:
    """Prepare the data and train the probes of a decision about the first stage's domains; needs Ray.

    Args:
        config: data, model, probes, search.
        model: directory of a checkpoint; None: the configured model.

    Raises:
        UserErrors: everything that is wrong with the configuration and the data.
    """
    with resolved(config) as run:
        prepared = validate(run.config)
        start = start_stage(run.config, 0, run.before, prepared)
        config = run.stages[0]
        kind = read_space(config.search.space)[0].kind
        chosen = choose_components(kind, start.old, start.mixture)
        weights = load_weights(config, prepared, model)
        base_ref = ray.put(snapshot(weights))
        tasks = [probe_task(config, prepared, name, chosen.replayed, "task") for name in chosen.names]
        found = train_all(tasks, base_ref)
        probes = [found[name] for name in chosen.names]
        return put_task(config, prepared, weights, base_ref, probes, start.mixture.domains)[0]
