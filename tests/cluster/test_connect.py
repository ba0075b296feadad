"""Addresses that answer or do not, and what a cluster must have."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

from opmix_ray.cluster import demand as demand_module
from opmix_ray.cluster import nursery
from opmix_ray.cluster.address import check_address
from opmix_ray.cluster.connect import (
    check_cluster,
    connected,
    copied_workers,
    missing_resources,
    own_cpus,
    own_resources,
    start_ray,
)
from opmix_ray.cluster.demand import Demand
from opmix_ray.errors import UserError
from opmix_ray.node import use_own_threads
from tests.support import ROOT, TinyRun


@contextmanager
def _server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address where every connection is given to `answer` and then closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _http(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _hang_up(connection: socket.socket) -> None:
    connection.recv(100)


def _stay_silent(connection: socket.socket) -> None:
    time.sleep(3)


def _trickle(connection: socket.socket) -> None:
    for _ in range(30):
        try:
            connection.sendall(b"\x00")
        except OSError:
            return
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_http, "something else than Ray answers"),
        (_hang_up, "the connection was closed"),
        (_stay_silent, "no answer in time"),
        (_trickle, "no answer in time"),
    ],
)
def test_a_port_that_is_no_ray(answer: Callable[[socket.socket], None], reason: str) -> None:
    with _server(answer) as address:
        began = time.monotonic()
        with pytest.raises(UserError, match=f"no Ray answers at this address: {reason}") as found:
            check_address(address, 0.5)
        assert time.monotonic() - began < 120
    assert (found.value.key, found.value.value) == ("cluster.address", address)
    assert found.value.remedy


def test_a_real_ray_answers_by_any_of_its_names(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    port = address.rpartition(":")[2]
    for name in (address, f"localhost:{port}", f"127.0.0.1:{port}"):
        check_address(name, 20)


def test_a_connection_that_is_there_is_used_and_left_open(ray_session: None, tiny: TinyRun) -> None:
    with connected(tiny.load()):
        pass
    assert ray.is_initialized()
    errors = check_cluster(tiny.load("probe.cpus=3000", "search.gpus=70"))
    assert [error.key for error in errors] == ["probe.cpus", "search.gpus"]


def test_requests_are_compared_with_the_cluster_and_with_its_machines(tiny: TinyRun) -> None:
    machines = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]
    have = {"CPU": 6.0, "GPU": 1.0}

    def wrong(*settings: str) -> list[str]:
        return [str(error) for error in missing_resources(tiny.load(*settings), have, machines)]

    assert wrong("train.workers=3", "train.cpus_per_worker=2", "search.cpus=4", "probe.gpus=1") == []
    assert wrong("train.workers=4", "train.cpus_per_worker=2") == [
        "train.cpus_per_worker = 2.0: asks for 8 CPUs for 4 workers, the cluster has 6; lower it or train.workers, or "
        "add machines"
    ]
    assert wrong("search.cpus=5") == [
        "search.cpus = 5.0: asks for 5 CPUs on one machine, the largest has 4; lower it, or add machines"
    ]
    assert wrong("train.gpus_per_worker=1", "train.workers=2", "probe.gpus=2", "train.cpus_per_worker=1") == [
        "train.gpus_per_worker = 1.0: asks for 2 GPUs for 2 workers, the cluster has 1; lower it or train.workers, or "
        "add machines",
        "probe.gpus = 2.0: asks for 2 GPUs, the cluster has 1; lower it, or add machines, "
        "or set probe.gpus to 0: probes then run on CPUs",
    ]


def test_a_ray_of_our_own_has_what_the_run_asks_for_unless_told_otherwise(tiny: TinyRun) -> None:
    assert own_cpus(tiny.load("train.workers=4", "train.cpus_per_worker=100.5")) == 402
    assert own_cpus(tiny.load("cluster.num_cpus=3", "probe.cpus=9")) == 3
    beside = tiny.load("train.cpus_per_worker=100", "probe.cpus=9", "stages.0.overlap=true")
    assert own_cpus(beside) == 109, "a decision goes on beside training"


def test_what_no_machine_has_together_or_at_all_is_named(tiny: TinyRun) -> None:
    machines = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 2.0}]

    def wrong(*settings: str) -> list[str]:
        have = {"CPU": 36.0, "GPU": 2.0}
        return [str(error) for error in missing_resources(tiny.load(*settings), have, machines)]

    assert wrong("probe.cpus=8") == []
    assert wrong("probe.cpus=8", "probe.gpus=1") == [
        "probe: asks for 8 CPUs and 1 GPU on one machine, no machine has them together; lower one of them, or add "
        "machines"
    ]
    assert wrong("train.resources={trainer: 1}", "train.workers=2") == [
        "train.resources.trainer = 1.0: asks for 2 trainer for 2 workers, the cluster has 0; lower it or "
        "train.workers, or add machines"
    ]


def test_places_are_counted_machine_by_machine() -> None:
    each = {"CPU": 2.0, "GPU": 0.5}
    demand = Demand("train", "the main run", 5, each)
    assert demand.places([{"CPU": 5.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 64.0}]) == 3
    assert demand.places([{"CPU": 64.0, "GPU": 8.0}]) == 5


def test_a_ray_of_our_own_has_the_named_resources_that_are_asked_for(tiny: TinyRun) -> None:
    config = tiny.load("train.resources={trainer: 1}", "train.workers=3", "search.resources={spot: 0.5}")
    assert own_resources(config) == {"trainer": 3, "spot": 1}


def heard(said: list[str], lines: int) -> None:
    """Wait until so many lines were said."""
    deadline = time.monotonic() + 120
    while len(said) < lines:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_waiting_is_said_once_and_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[dict[str, float]] = [{"CPU": 1.0}]
    monkeypatch.setattr(demand_module, "machines_now", lambda: list(machines))
    monkeypatch.setattr(demand_module, "_FIRST", 0.01)
    monkeypatch.setattr(demand_module, "_EVERY", 0.01)
    said: list[str] = []
    with demand_module.waiting(Demand("probe", "a probe", 1, {"CPU": 1.0, "GPU": 1.0}), said.append):
        heard(said, 1)
        assert said == [
            "waiting for the cluster to grow: a probe asks for 1 CPU and 1 GPU on one machine, "
            "the machines there are (1) have less"
        ]
        time.sleep(0.1)
        assert len(said) == 1, "said again"
        machines.append({"CPU": 8.0, "GPU": 1.0})
        heard(said, 2)
    assert re.fullmatch(r"the machines are there after \d+ s", said[1])
    assert len(said) == 2


def test_machine_types_of_the_cluster_files_count_as_there(
    ray_session: None, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of a cluster that nobody asked for anything yet has no room, and neither is that an error."""
    monkeypatch.setattr(demand_module, "_configuration", lambda address: ROOT / "cluster.yaml")
    types = demand_module.machine_types()
    assert types is not None
    assert [(each.resources["CPU"], each.most) for each in types] == [(48, 8), (8, 24), (32, 8)]
    large = [
        "train.workers=32",
        "train.gpus_per_worker=1",
        "train.resources={trainer: 1}",
        "train.batch_size=32",
    ]
    assert check_cluster(tiny.load(*large, "probe.gpus=1", "probe.cpus=8")) == []
    (error,) = check_cluster(tiny.load("probe.gpus=8"))
    assert str(error) == (
        "probe.gpus = 8.0: asks for 8 GPUs on one machine, the largest has 4; lower it, or add machines, "
        "or set probe.gpus to 0: probes then run on CPUs"
    )


def test_what_may_come_is_not_refused_where_it_cannot_be_seen(
    ray_session: None, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(check_cluster(tiny.load("probe.gpus=8"))) == 1
    assert check_cluster(tiny.load("probe.gpus=8", "cluster.grows=true")) == []
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "headgroup")
    assert demand_module.machine_types() is None
    assert check_cluster(tiny.load("probe.gpus=8")) == []


def _until(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_worker_is_a_copy_that_has_imported_and_its_own_process_in_all_else(ray_session: None) -> None:
    _, address = shlex.split(ray.get_runtime_context().runtime_env["py_executable"])[-2:]
    _until(Path(address).exists)

    def look() -> tuple[bool, int, str | None, bool, int]:
        there = "torch" in sys.modules
        use_own_threads()
        import torch

        alone = os.getpgid(0) == os.getpid()  # Ray ends whole groups
        first_to_go = int(Path("/proc/self/oom_score_adj").read_text())
        return there, torch.get_num_threads(), os.environ.get("OPMIX_ASKED"), alone, first_to_go

    for cpus in (1, 2):
        asked = ray.remote(look).options(num_cpus=cpus, runtime_env={"env_vars": {"OPMIX_ASKED": str(cpus)}})
        assert ray.get(asked.remote()) == (True, cpus, str(cpus), True, 1000)


def test_where_nobody_makes_copies_a_worker_starts_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import os, sys; print(sys.argv[1:], os.environ['OPMIX_ASKED']); sys.exit(7)")
    command = [*nursery.asking(str(tmp_path / "nobody")), str(script), "a b", "c"]
    done = subprocess.run(
        command, env=os.environ | {"OPMIX_ASKED": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("['a b', 'c'] 1\n", "", 7)


@pytest.mark.parametrize("late", [2, 3])
def test_a_ray_that_is_long_in_starting_is_tried_again(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    """Ray gives its node half a minute, however busy the machine is."""
    tries: list[int] = []

    def init(**options: object) -> None:
        tries.append(1)
        if len(tries) <= late:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if late == 2:
        start_ray(num_cpus=1)
    else:
        with pytest.raises(UserError, match=r"did not start in 3 tries of half a minute; run again when"):
            start_ray(num_cpus=1)
    assert len(tries) == 3


@pytest.mark.slow
@pytest.mark.promise
def test_a_driver_that_is_killed_leaves_nobody_that_makes_copies() -> None:
    script = (
        "import shlex, time\n"
        "from opmix_ray.cluster.connect import copied_workers\n"
        "with copied_workers() as workers:\n"
        "    print(shlex.split(workers['runtime_env']['py_executable'])[-1], flush=True)\n"
        "    time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert driver.stdout is not None
    address = Path(driver.stdout.readline().strip())
    (server,) = psutil.Process(driver.pid).children()
    _until(address.exists)
    driver.kill()
    driver.wait()
    _until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    assert not address.parent.exists()


def test_a_process_that_makes_copies_begins_ahead_where_a_ray_is_started(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    nursery.end_ahead()  # what commands that were refused in this process have left
    config = tiny.load()
    for other in (config.but(cluster={"address": "10.0.0.1:6379"}), config.but(probe={"gpus": 1})):
        nursery.begin_ahead(other)
        assert not nursery._ahead
    with monkeypatch.context() as connected_already:
        connected_already.setattr(ray, "is_initialized", lambda: True)
        nursery.begin_ahead(config)
        assert not nursery._ahead
    nursery.begin_ahead(config)
    nursery.begin_ahead(config)
    (waiting,) = nursery._ahead
    with copied_workers() as workers:
        assert shlex.split(workers["runtime_env"]["py_executable"])[-1] == waiting.address
        assert not nursery._ahead
        assert waiting.process.poll() is None
    assert waiting.process.poll() is not None
    assert not Path(waiting.address).parent.exists()


def test_a_run_that_is_refused_leaves_no_process_that_began_ahead(tiny: TinyRun) -> None:
    script = (
        "import sys\n"
        "from opmix_ray.cluster import nursery\n"
        "from opmix_ray.config import load_config\n"
        "nursery.begin_ahead(load_config(sys.argv[1]))\n"
        "print(nursery._ahead[0].address, nursery._ahead[0].process.pid, flush=True)\n"
        "sys.exit(2)\n"
    )
    command = [sys.executable, "-c", script, str(tiny.write())]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    address, pid = ended.stdout.split()
    assert ended.returncode == 2
    assert not psutil.pid_exists(int(pid))
    assert not Path(address).parent.exists()
