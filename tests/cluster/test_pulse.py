"""What is said when Ray goes away, or ends a worker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from opmix_ray.cli import exit_code
from opmix_ray.cluster.address import pulse
from tests.cluster.machines import Machines, wait_for
from tests.cluster.runs import Running
from tests.support import PATIENCE, TinyRun, read_json


def test_a_head_that_is_gone_is_said_once_with_the_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ended = threading.Event()
        with pulse(address, every=0.02, end=ended.set):
            time.sleep(0.3)
            assert capsys.readouterr().err == ""
            server.close()
            said, deadline = "", time.monotonic() + 120
            while not said:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                said = capsys.readouterr().err
            assert ended.wait(120), "after some looks more"
    said += capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: Ray's head at {address} does not answer any more")
    assert "--resume" in said


def test_a_raylet_that_is_gone_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head, socket.create_server(("127.0.0.1", 0)) as raylet:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (head, raylet)]
        ended = threading.Event()
        with pulse(*addresses, every=600, end=ended.set):
            assert not ended.wait(0.3)
            raylet.close()
            assert ended.wait(120), "at once: a call to it would end this process"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "error: Ray's process on this machine does not answer any more; the run ends: start Ray"
    )
    assert "--resume" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
            "memory monitor",
        ),
        (ray.exceptions.LocalRayletDiedError(), "Ray went away under the run"),
        (ray.exceptions.RaySystemError("System error: Broken pipe"), "Ray went away under the run"),
    ],
)
def test_what_ray_could_not_do_is_one_line_with_the_way_to_go_on(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("a trial failed") from cause

    assert exit_code(fail) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert "--resume goes on from the last checkpoint" in said


def prepared(tiny: TinyRun) -> TinyRun:
    """Long enough to be hit while it trains and while it decides."""
    tiny.tree["train"] |= {"checkpoint_every": 20, "log_every": 5}
    tiny.tree["stages"] = [{"name": "only", "steps": 200, "start": "uniform", "decide_at": [0.5]}]
    tiny.tree["probe"] |= {"steps": 40}
    return tiny


def while_it_trains(run: Running) -> bool:
    return run.step() >= 30


def before_it_decides(run: Running) -> bool:
    return run.step() >= 90


def while_it_decides(run: Running) -> bool:
    return run.step() >= 0 and any((run.output / "decisions/000/probes").glob("*/probe.json"))


def goes_on(run: Running, tiny: TinyRun) -> None:
    """The run ends by itself, says in one line how to go on, and that goes on."""
    assert run.process.wait(PATIENCE) == 2, "\n".join(run.lines)
    run.finished_reading()
    said = [line for line in run.lines if "--resume" in line]
    assert len(said) == 1, "\n".join(run.lines)
    assert said[0].startswith("error: Ray"), said
    assert not any(line.startswith("Traceback") for line in run.lines), "\n".join(run.lines)
    probes = {file: file.stat().st_mtime_ns for file in run.output.glob("decisions/000/probes/*/probe.json")}
    again = Running(tiny, run.output, "--resume").finish()
    (resumed,) = [int(line.split()[3]) for line in again.lines if line.startswith("resumed from step")]
    assert resumed >= (100 if probes else 20)
    assert {file: file.stat().st_mtime_ns for file in probes} == probes
    assert read_json(run.output / "result.json")["steps"] == 200


@pytest.mark.cluster
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("process", "moment"),
    [
        ("gcs_server", while_it_trains),
        ("gcs_server", while_it_decides),
        ("raylet", while_it_trains),
        ("raylet", before_it_decides),
    ],
)
def test_a_process_of_ray_that_dies_ends_the_run_which_goes_on_with_another(
    tiny: TinyRun, tmp_path: Path, process: str, moment: Callable[[Running], bool]
) -> None:
    run = Running(prepared(tiny), tmp_path / "out")
    wait_for(lambda: moment(run), what=moment.__name__)
    (found,) = [child for child in psutil.Process(run.process.pid).children() if child.name() == process]
    found.kill()
    goes_on(run, tiny)


@pytest.mark.cluster
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moment", [while_it_trains, while_it_decides])
def test_a_head_that_dies_ends_the_run_which_goes_on_elsewhere(
    tiny: TinyRun, tmp_path: Path, moment: Callable[[Running], bool]
) -> None:
    machines = Machines([{}, {}])
    try:
        run = Running(prepared(tiny), tmp_path / "out", "--address", machines.address)
        wait_for(lambda: moment(run), what=moment.__name__)
        machines.take_head()
        goes_on(run, tiny)
    finally:
        machines.close()
