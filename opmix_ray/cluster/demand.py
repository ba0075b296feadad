"""What the parts of a run ask Ray for, and whether a cluster has it, or may grow to have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from opmix_ray.config import RunConfig

Resources = Mapping[str, float]
ROUNDING = 1e-9


@dataclass(frozen=True)
class Demand:
    """What one part of a run cannot do without at one time.

    Args:
        section: of the configuration: `train`, `probe` or `search`.
        who: in words.
        count: how many of them at the same time.
        each: what every one of them asks for on one machine, by kind of resource.
    """

    section: str
    who: str
    count: int
    each: dict[str, float]

    def key(self, kind: str) -> str:
        """The key that sets an amount."""
        if kind not in ("CPU", "GPU"):
            return f"{self.section}.resources.{kind}"
        return f"{self.section}.{kind.lower()}s{'_per_worker' if self.section == 'train' else ''}"

    def places(self, machines: Sequence[Resources]) -> int:
        """How many of them machines can hold at the same time, as far as is needed."""
        found = 0
        for machine in machines:
            found += min(
                self.count,
                *(int(machine.get(kind, 0.0) / each + ROUNDING) for kind, each in self.each.items()),
            )
        return min(found, self.count)


def demands(config: RunConfig) -> list[Demand]:
    """What the main run, a probe and an evaluator ask for."""
    return [of_main_run(config), of_probe(config), of_evaluator(config)]


def of_main_run(config: RunConfig) -> Demand:
    """All workers together."""
    train = config.train
    each = _each(train.cpus_per_worker, train.gpus_per_worker, train.resources)
    return Demand("train", "the main run", train.workers, each)


def of_probe(config: RunConfig) -> Demand:
    """One probe: others may follow on the same machine."""
    probe = config.probe
    return Demand("probe", "a probe", 1, _each(probe.cpus, probe.gpus, probe.resources))


def of_evaluator(config: RunConfig) -> Demand:
    """One evaluator: it can score every candidate."""
    search = config.search
    return Demand("search", "an evaluator", 1, _each(search.cpus, search.gpus, search.resources))


def machines_now() -> list[dict[str, float]]:
    """Resources of every machine of the connected cluster that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def words(amounts: Resources) -> str:
    """`4 CPUs and 1 GPU`."""
    parts = [
        f"{amount:g} {kind}{'s' if kind in ('CPU', 'GPU') and amount != 1 else ''}"
        for kind, amount in amounts.items()
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _each(cpus: float, gpus: float, others: Resources) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **others}
