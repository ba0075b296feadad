"""Planned memory beside what the machines have: in words for people, and a line for each thing that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from opmix_ray.cluster.connect import connected, joins_ray, own_cpus
from opmix_ray.cluster.demand import machine_types, machines_now
from opmix_ray.cluster.memory import PROCESS, plan_memory, vocabulary
from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.architecture import architecture
from opmix_ray.model.targets import adapted_layers, reached

_FEW = 0.3  # share of the weights below which probes say little
_WORDS = {
    "worker": "a worker of the main run",
    "probe": "a probe",
    "evaluator": "an evaluator",
    "machine": "a machine's object store",
    "driver": "the driver",
}
_KEYS = {
    "worker": "train.micro_batch_size, model.recompute or more train.workers with fsdp2",
    "probe": "probe.gpus, probe.batch_size or model.recompute",
    "evaluator": "search.gpus (0: evaluators on CPUs), evaluation.batch_size or model.dtype",
}


@dataclass(frozen=True)
class Machine:
    """What one machine has: CPUs, bytes of memory, and bytes of each of its GPUs (0: not known)."""

    cpus: float
    memory: float
    gpu_memory: float = 0.0


def check_memory(config: RunConfig) -> dict[str, Any]:
    """What a run without errors needs, and what does not fit.

    Returns:
        `memory`: see `plan_memory`, or None for a model whose passes cannot be counted without doing them;
        `warnings`: a line each; `probes_reach`: share of the weights that probes adapt, None without decisions.
    """
    share = probe_share(config)
    few = [] if share is None or share >= _FEW else [
        f"probes reach only {100 * share:.0f} % of the model's weights, so that decisions see little of what training "
        "does; see probe.target_modules"
    ]  # fmt: skip
    found = _planned(config)
    return {**found, "warnings": few + found["warnings"], "probes_reach": share}


def probe_share(config: RunConfig) -> float | None:
    """Share of the model's weights that lie in what probes adapt; None for a run without decisions."""
    if not any(stage.decide_at for stage in config.stages):
        return None
    size, eos = vocabulary(config)
    model = architecture(config.model, vocab_size=size, eos_token_id=eos)
    return reached(model, adapted_layers(model, config.probe.target_modules))


def _planned(config: RunConfig) -> dict[str, Any]:
    try:
        plan = plan_memory(config)
    except UserError:
        raise
    except Exception as error:  # code that came with a model may do anything
        return {"memory": None, "warnings": [f"memory cannot be planned for this model: {first_line(error)}"]}
    return {"memory": plan, "warnings": memory_warnings(config, plan)}


def memory_words(checked: Mapping[str, Any]) -> str:
    """The plan and its warnings for people: a line for each part, what it is made of, and the most at a time."""
    lines, plan = [], checked["memory"] or {}
    if plan:
        lines.append(f"planned memory for {plan['parameters']:,} parameters, at most")
    for part, words in _WORDS.items():
        if part in plan and plan[part]["peak"]:
            parts = [
                f"{name.replace('_', ' ')} {size(n)}"
                for name, n in plan[part].items()
                if n and name != "peak"
            ]
            line = f"  {words:24} {size(plan[part]['peak']):>8}"
            lines.append(f"{line}   ({', '.join(parts)})" if parts else line)
    share = checked.get("probes_reach")
    if share is not None:
        lines.append(f"probes reach {100 * share:.0f} % of the model's weights")
    return "\n".join([*lines, *(f"warning: {line}" for line in checked["warnings"])])


def memory_warnings(config: RunConfig, plan: Mapping[str, Any]) -> list[str]:
    """A line for each part that is planned to need more than the machines have; none where those are not known."""
    machines = _machines(config)
    return shortages(config, plan, machines) if machines else []


def _machines(config: RunConfig) -> list[Machine]:
    if not joins_ray(config):
        gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
        return [Machine(own_cpus(config), psutil.virtual_memory().total, gpu)]
    with connected(config):
        if config.cluster.grows or machine_types() != []:
            return []  # how much memory the machines have that may come is not known
        resources = machines_now()
    return [
        Machine(each.get("CPU", 0.0), each.get("memory", 0.0) + each.get("object_store_memory", 0.0))
        for each in resources
    ]


def shortages(config: RunConfig, plan: Mapping[str, Any], machines: Sequence[Machine]) -> list[str]:
    """A line for each part that is planned to need more than the largest of some machines has."""
    largest = max(machines, key=lambda machine: machine.memory)
    lines = []
    for part, gpus in _gpus(config).items():
        have = min(gpus, 1) * largest.gpu_memory
        if part in plan and have and plan[part]["peak"] > have:
            where = " on one of its GPUs" if gpus > 1 else ""
            whole = "a GPU has" if gpus >= 1 else f"{gpus:g} of a GPU has"
            lines.append(
                f"{_WORDS[part]} is planned to need {size(plan[part]['peak'])}{where}, {whole} {size(have)}; "
                f"see {_KEYS[part]}"
            )
    for part in ("worker", "probe", "evaluator"):
        if part not in plan:
            continue
        count = _side_by_side(config, part, largest.cpus)
        each = plan[part].get("host", PROCESS + plan[part]["peak"])
        beside = PROCESS if part == "worker" else plan["driver"]["peak"] + plan["machine"]["peak"]
        need = count * each + beside
        if need > largest.memory:
            lines.append(
                f"{_WORDS[part]}: {count} at a time are planned to need {size(need)} on one machine with driver and "
                f"shared weights, the largest has {size(largest.memory)}; see {_KEYS[part]}"
            )
    return lines


def _gpus(config: RunConfig) -> dict[str, float]:
    return {
        "worker": config.train.gpus_per_worker,
        "probe": config.probe.gpus,
        "evaluator": config.search.gpus,
    }


def _side_by_side(config: RunConfig, part: str, cpus: float) -> int:
    """Processes of a part that one machine may hold at a time."""
    wanted, each = {
        "worker": (config.train.workers, config.train.cpus_per_worker),
        "probe": (len(config.data.domains), config.probe.cpus),
        "evaluator": (config.search.evaluators, config.search.cpus),
    }[part]
    return max(1, min(wanted, int(cpus // each)))


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
