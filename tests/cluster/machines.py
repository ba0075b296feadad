"""Several machines on this one: a cluster whose nodes can be taken away, and a look at what runs where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from tests.support import PATIENCE

# A machine that is gone is noticed within two seconds, not the usual half minute.
_SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 400,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}

# What processes at work call themselves; Tune wraps a trainable that asks for resources.
TRAINING, PROBE, TRIAL = ("RayTrainWorker",), ("ray::probe:",), ("Evaluator", "ResourceTrainable")


@dataclass(frozen=True)
class Process:
    """A Ray worker on this machine: its process, its raylet's, and what it is doing."""

    pid: int
    raylet: int
    title: str


def processes() -> Iterator[Process]:
    """Ray workers that are at work."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (
                    (entry / "cmdline")
                    .read_bytes()
                    .rstrip(b"\0")
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                if title.startswith("ray::"):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    yield Process(int(entry.name), parent, title)
            except OSError:
                continue  # it has just ended


class Machines:
    """A head without room and the machines added to it.

    Args:
        resources: of each machine to begin with.
    """

    def __init__(self, resources: list[dict[str, float]]) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _SOON},
        )
        self.resources: dict[Any, dict[str, float]] = {}
        self._added = 0
        for each in resources:
            self.add(each)

    @property
    def address(self) -> str:
        """For `--address`."""
        return str(self.cluster.address)

    def add(self, resources: dict[str, float]) -> Any:
        """One more machine with one CPU and these resources besides."""
        self._added += 1  # an address of its own, so that drivers join the head and no machine that will go
        node = self.cluster.add_node(
            num_cpus=1,
            resources=resources,
            object_store_memory=200 << 20,
            node_ip_address=f"127.0.0.{1 + self._added}",
        )
        self.resources[node] = resources
        return node

    def take(self, node: Any) -> dict[str, float]:
        """Take a machine away without warning, and say what it had."""
        for process in self.on(node):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        return self.resources.pop(node)

    def take_head(self) -> None:
        """Take away the machine on which the cluster is known, and which drivers have joined."""
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def on(self, node: Any) -> list[Process]:
        """What runs on a machine."""
        raylet = _raylet(node)
        return [process for process in processes() if process.raylet == raylet]

    def hosting(self, *titles: str) -> list[Any]:
        """Machines on which a process with one of these words in its title runs."""
        raylets = {each.raylet for each in processes() if any(title in each.title for title in titles)}
        return [node for node in self.resources if _raylet(node) in raylets]

    def stored(self) -> dict[str, int]:
        """Bytes of objects that were ever made on, or sent to, each machine; by Ray's id of it."""
        return {
            node["NodeID"]: int(_store(node).cumulative_created_bytes)
            for node in ray.nodes()
            if node["Alive"]
        }

    def logs(self) -> Path:
        """Ray's logs."""
        return Path(self.cluster.head_node.get_logs_dir_path())

    def close(self) -> None:
        """End every machine."""
        self.cluster.shutdown()


def wait_for(moment: Callable[[], Any], seconds: float = PATIENCE, what: str = "the moment") -> Any:
    """What `moment` gives as soon as it is something.

    Trials run a minute after a run's beginning here, and after more than two beside other work.
    """
    deadline = time.monotonic() + seconds
    while not (found := moment()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)
    return found


def _store(node: dict[str, Any]) -> Any:
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
