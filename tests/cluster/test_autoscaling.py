"""A cluster that grows for a decision and shrinks after it, with Ray's fake provider: machines are processes here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.heads import Head
from tests.support import TinyRun, read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
TYPES = {
    "trainer": {"resources": {"CPU": 1, "trainer": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "side": {"resources": {"CPU": 1, "side": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
# Waits until no machine but the head is left and nothing is asked for; prints what it saw on the way as JSON.
SHRINK = """
import json, sys, time
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray._private.internal_api import node_stats
ray.init(address=sys.argv[1], log_to_driver=False)
until, alive = time.monotonic() + float(sys.argv[2]), []
while time.monotonic() < until:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    status = get_cluster_status(sys.argv[1])
    demands = status.resource_demands
    asked = len(demands.ray_task_actor_demand) + len(demands.placement_group_demand)
    asked += len(demands.cluster_constraint_demand)
    stats = node_stats(nodes[0]["NodeManagerAddress"], nodes[0]["NodeManagerPort"]).store_stats
    alive.append((len(nodes), asked, stats.object_store_bytes_used))
    if alive[-1][:2] == (1, 0):
        break
    time.sleep(0.5)
print(json.dumps(alive))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head(
        cpus=0, dashboard=False,
        autoscaling={"max_workers": 3, "idle_timeout_minutes": 0.1, "available_node_types": TYPES},
    )  # fmt: skip
    yield head
    head.close()


def asking(tiny: TinyRun) -> TinyRun:
    tiny.tree["train"] |= {"resources": {"trainer": 1}}
    tiny.tree["probe"] |= {"resources": {"side": 1}, "steps": 60}
    tiny.tree["search"] |= {"resources": {"side": 1}}
    return tiny


def run(head: Head, *words: str) -> subprocess.CompletedProcess[str]:
    return head.run(sys.executable, "-m", "opmix_ray", "run", *words)


def test_machines_come_for_a_run_and_go_after_it(head: Head, tiny: TinyRun, tmp_path: Path) -> None:
    done = run(head, str(asking(tiny).write()), "--output", str(tmp_path / "out"), "--address", head.address)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "waiting" in line or "machines are there" in line]
    assert (
        "waiting for the cluster to grow: the main run asks for 1 CPU and 1 trainer on one machine" in said[0]
    )
    assert said[1].startswith("the machines are there after ")
    assert any("a probe asks for 1 CPU and 1 side" in line for line in said)
    assert read_json(tmp_path / "out" / "result.json")["decisions"][0]["trials"] == 6
    shrunk = head.run(sys.executable, "-c", SHRINK, head.address, "90")
    assert shrunk.returncode == 0, shrunk.stderr
    seen: list[list[int]] = json.loads(shrunk.stdout.splitlines()[-1])
    assert seen[-1][:2] == [1, 0], seen


def test_what_no_machine_type_can_hold_is_refused_at_once(head: Head, tiny: TinyRun, tmp_path: Path) -> None:
    file = str(asking(tiny).write())

    def refused(*settings: str) -> list[str]:
        words = [word for setting in settings for word in ("--set", setting)]
        ended = run(head, file, "--output", str(tmp_path / "out"), "--address", head.address, *words)
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert not (tmp_path / "out" / "metrics.jsonl").exists()
        return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]

    (wrong,) = refused("probe.cpus=2")
    assert "probe.cpus = 2.0: asks for 2 CPUs on one machine, the largest has 1" in wrong
    (wrong,) = refused("train.workers=2")
    assert "train.resources.trainer = 1.0: asks for 2 trainer for 2 workers, the cluster has 1" in wrong
    (wrong,) = refused("search.resources={trainer: 1, side: 1}")
    assert (
        "search: asks for 1 CPU, 1 trainer and 1 side on one machine, no machine has them together" in wrong
    )
