"""What the parts of a run ask Ray for, what a cluster has or may grow to, and words for the time until it has.

Ray tells its drivers nothing about what may come. On the head's machine, where jobs run, the autoscaler's process names
its configuration; in a pod of KubeRay it can be seen that there is an autoscaler, but not what it may bring.

with waiting(demand, progress.message):
    ...  # tasks that ask for `demand`
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from opmix_ray.config import RunConfig

Resources = Mapping[str, float]
ROUNDING = 1e-9
_FILE, _ADDRESS = "--autoscaling-config=", "--gcs-address="
_KUBERAY = ("RAY_USAGE_STATS_KUBERAY_IN_USE", "RAY_NODE_TYPE_NAME")  # set in pods of a cluster that may grow


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


@dataclass(frozen=True)
class MachineType:
    """One kind of machine: what each has, and how many there may be at most."""

    resources: dict[str, float]
    most: int


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


def machine_types() -> list[MachineType] | None:
    """The types that may come; empty without an autoscaler, None where there is one that does not tell."""
    file = _configuration(ray.get_runtime_context().gcs_address)
    if file is not None:
        with suppress(OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            return _types(yaml.safe_load(file.read_text()))
        return None
    return None if set(_KUBERAY) <= os.environ.keys() else []


def _types(config: dict[str, Any]) -> list[MachineType]:
    """Of a configuration of `ray up`: the JSON or YAML file that the head's autoscaler was started with."""
    limit, head = int(config.get("max_workers", 0)), config.get("head_node_type")
    found = []
    for name, each in config["available_node_types"].items():
        most = min(limit, int(each.get("max_workers", 0 if name == head else limit)))
        if most:
            resources = {kind: float(amount) for kind, amount in each["resources"].items()}
            found.append(MachineType(resources, most))
    return found


def _configuration(address: str) -> Path | None:
    """The file of the autoscaler that works for the cluster at an address, if it runs on this machine."""
    port = address.rpartition(":")[2]  # one machine has several names, and one GCS at a port
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(word.startswith(_ADDRESS) and word.endswith(f":{port}") for word in words):
                for word in words:
                    if word.startswith(_FILE):
                        return Path(os.path.expanduser(word.removeprefix(_FILE)))
    return None


def words(amounts: Resources) -> str:
    """`4 CPUs and 1 GPU`."""
    parts = [
        f"{amount:g} {kind}{'s' if kind in ('CPU', 'GPU') and amount != 1 else ''}"
        for kind, amount in amounts.items()
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _each(cpus: float, gpus: float, others: Resources) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **others}


_FIRST, _EVERY, _AGAIN = 2.0, 2.0, 300.0  # seconds: before the first look, between looks, between messages


@contextmanager
def waiting(demand: Demand, message: Callable[[str], None]) -> Iterator[None]:
    """Say, for the time of a `with`, when the machines there are cannot hold what is asked for, and when they can.

    Args:
        demand: what is asked for inside.
        message: gets a line when waiting begins, every five minutes while it lasts, and when it is over.
    """
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(demand, message, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)  # it may be asking a cluster that does not answer any more


def _watch(demand: Demand, message: Callable[[str], None], done: threading.Event) -> None:
    began = said = 0.0
    pause = _FIRST
    while not done.wait(pause):
        pause = _EVERY
        try:
            machines = machines_now()
        except Exception:  # no answer now, or the connection is being closed: nothing to say about that
            continue
        now = time.monotonic()
        if demand.places(machines) == demand.count:
            if began:
                message(f"the machines are there after {now - began:.0f} s")
            began = said = 0.0
        elif not said or now - said >= _AGAIN:
            began, said = began or now, now
            message(_line(demand, len(machines), now - began))


def _line(demand: Demand, machines: int, seconds: float) -> str:
    each = words(demand.each)
    times = f"{demand.count} times {each}" if demand.count > 1 else f"{each} on one machine"
    since = f" (for {seconds / 60:.0f} min)" if seconds else ""
    return (
        f"waiting for the cluster to grow{since}: {demand.who} asks for {times}, "
        f"the machines there are ({machines}) have less"
    )
