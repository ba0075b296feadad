"""A run across several machines is the run on one; its weights travel to each machine once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import ray

from opmix_ray.cluster.connect import check_reach
from opmix_ray.data.prepare import prepare
from opmix_ray.output.state import STATE
from opmix_ray.storage import Storage
from tests.cluster.machines import PROBE, TRAINING, TRIAL, Machines
from tests.cluster.runs import Running, assert_same, outcome, spread
from tests.support import ROOT, TinyRun, read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
ROLES = {"the main run": TRAINING, "probes": PROBE, "trials": TRIAL}


class Watched:
    """Which machines each part of a run was seen on."""

    def __init__(self, machines: Machines) -> None:
        self.seen: dict[str, set[object]] = {role: set() for role in ROLES}
        self._machines, self._done = machines, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            for role, titles in ROLES.items():
                self.seen[role].update(self._machines.hosting(*titles))

    def stop(self) -> dict[str, set[object]]:
        self._done.set()
        self._thread.join()
        return self.seen


def test_across_machines_as_on_one_and_weights_travel_once(
    machines: Machines, tiny: TinyRun, tiny_data: Path, tmp_path: Path
) -> None:
    tiny.tree["model"]["config"] |= {"hidden_size": 128, "intermediate_size": 384}  # weights of several MB
    spread(tiny.tree)
    alone = Running(tiny, tmp_path / "alone").finish()
    ray.init(address=machines.address, log_to_driver=False)
    try:
        before = machines.stored()
        watch = Watched(machines)
        across = Running(tiny, tmp_path / "across", "--address", machines.address).finish()
        seen, after = watch.stop(), machines.stored()
    finally:
        ray.shutdown()
    assert_same(outcome(across.output), outcome(alone.output))

    def named(name: str) -> set[object]:
        return {node for node, resources in machines.resources.items() if name in resources}

    assert seen["the main run"] == named("trainer")
    assert seen["probes"] == named("side")
    assert seen["trials"] == named("side")

    cost = outcome_cost(across.output)
    arrays = cost["probes"]["bytes"] + cost["search"]["bytes"]  # the base and all factors
    made = {node: after[node] - before[node] for node in after}
    head = machines.cluster.head_node.node_id
    sides = {node.node_id for node in named("side")}
    assert arrays > 3e6
    for node, size in made.items():
        if node in sides or node == head:  # three probes and seven trials on two machines
            assert arrays <= size < 1.5 * arrays
        else:
            assert size < 0.5 * arrays


@pytest.mark.timeout(1800)
def test_the_demo_across_machines_is_the_demo(machines: Machines, tmp_path: Path) -> None:
    """`examples/quickstart.yaml` as it stands, but for the two workers that share its steps here and there."""
    tree: dict[str, dict[str, object]] = {name: {} for name in ("train", "probe", "search")}
    spread(tree)
    tree["train"]["cpus_per_worker"] = 1
    words = [
        f"{part}.{key}={json.dumps(value)}" for part, keys in tree.items() for key, value in keys.items()
    ]
    words = [word for each in words for word in ("--set", each)]
    demo = ROOT / "examples" / "quickstart.yaml"
    alone = Running(demo, tmp_path / "alone", *words).finish()
    across = Running(demo, tmp_path / "across", "--address", machines.address, *words).finish()
    found = outcome(across.output)
    assert_same(found, outcome(alone.output))
    assert found["steps"][-1] == 300
    assert len(found["kept"]) == 1


def outcome_cost(output: Path) -> dict[str, dict[str, float]]:
    cost: dict[str, dict[str, float]] = read_json(output / "decisions/000/decision.json")["details"]["cost"]
    return cost


def test_what_other_machines_do_not_see_is_refused_before_anything_runs(
    machines: Machines, tiny: TinyRun, tmp_path: Path
) -> None:
    """A machine whose files are others than the driver's: here, one that is asked for a file that is not there."""
    config = tiny.load()
    prepared = prepare(config)
    ray.init(address=machines.address, log_to_driver=False)
    try:
        assert check_reach(config, empty(tmp_path / "there"), prepared)[0].key == "output"
        storage = Storage(str(tmp_path / "whole"))
        storage.write_json(STATE, {})
        assert check_reach(config, storage, prepared) == []
    finally:
        ray.shutdown()


def empty(directory: Path) -> Storage:
    directory.mkdir()
    return Storage(str(directory))
