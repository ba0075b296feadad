"""Machines that go away while a run uses them: the same decision and the same model as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from tests.cluster.machines import PROBE, TRIAL, Machines, processes, wait_for
from tests.cluster.runs import Running, assert_same, lines, outcome, spread
from tests.support import TinyRun, read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
EVERY, BEFORE, STEPS = 30, 90, 300  # steps between checkpoints, before the decision, and in all
KILLS = int(os.environ.get("OPMIX_SOAK_KILLS", "20"))  # of the soak


def prepared(tiny: TinyRun) -> TinyRun:
    """Long enough to be hit in the middle of everything."""
    spread(tiny.tree)
    tiny.tree["train"] |= {"checkpoint_every": EVERY, "log_every": 5, "max_failures": 50, "batch_size": 8}
    tiny.tree["stages"] = [
        {"name": "only", "steps": STEPS, "start": "uniform", "decide_at": [BEFORE / STEPS]}
    ]
    tiny.tree["probe"] |= {"steps": 40, "batch_size": 8}
    tiny.tree["cluster"] = {"max_retries": 50}
    tiny.tree["search"] |= {"trials": 12, "sequences": 24}
    return tiny


@pytest.fixture(scope="module")
def undisturbed(
    machines: Machines, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    run = Running(prepared(TinyRun(tiny_data, directory)), directory / "out", "--address", machines.address)
    return outcome(run.finish().output)


def pid_of(machines: Machines, number: int) -> int | None:
    """The process of a worker of the main run, by its rank, out of the log of Ray Train's controller."""
    pids: dict[int, int] = {}
    for log in sorted(machines.logs().glob("train/*controller*.log"), key=lambda file: file.stat().st_mtime):
        for pid, place in re.findall(r"pid=(\d+)\) world_rank=(\d+)", log.read_text(errors="replace")):
            pids[int(place)] = int(pid)
    return pids.get(number)


def rank(machines: Machines, number: int) -> Any:
    """The machine of a worker of the main run, by its rank."""
    pid = pid_of(machines, number)
    for node in machines.resources:
        if any(process.pid == pid for process in machines.on(node)):
            return node
    return None


def replace(machines: Machines, node: Any) -> None:
    """Take a machine away and bring another of its kind."""
    machines.add(machines.take(node))


def hosts(titles: tuple[str, ...]) -> Callable[[Machines, Running], Any]:
    return lambda machines, run: next(iter(machines.hosting(*titles)), None)


def while_training(number: int) -> Callable[[Machines, Running], Any]:
    """In the second segment, after a checkpoint in it."""
    return lambda machines, run: rank(machines, number) if run.step() >= BEFORE + EVERY + 20 else None


def while_a_checkpoint_is_written(machines: Machines, run: Running) -> Any:
    segments = sorted((run.output / "train").glob("00-only-0000090*/checkpoint_*"))
    return rank(machines, 0) if segments else None


def while_trials_run(machines: Machines, run: Running) -> Any:
    done = lines(run.output / "decisions/000/trials.jsonl")
    return hosts(TRIAL)(machines, run) if len(done) >= 2 else None


MOMENTS: dict[str, Callable[[Machines, Running], Any]] = {
    "while probes are trained": hosts(PROBE),
    "while trials run": while_trials_run,
    "a worker of the main run": while_training(1),
    "rank 0 of the main run": while_training(0),
    "while a checkpoint is written": while_a_checkpoint_is_written,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_machine_goes(
    machines: Machines, tiny: TinyRun, undisturbed: dict[str, Any], moment: str, tmp_path: Path
) -> None:
    run = Running(prepared(tiny), tmp_path / "out", "--address", machines.address)
    node = wait_for(lambda: (run.step(), MOMENTS[moment](machines, run))[1], what=moment)
    recorded = lines(run.output / "decisions/000/trials.jsonl")
    probes = {file: file.stat().st_mtime_ns for file in run.output.glob("decisions/000/probes/*/probe.json")}
    replace(machines, node)
    run.finish()
    assert_same(outcome(run.output), undisturbed)
    trials = lines(run.output / "decisions/000/trials.jsonl")
    assert len({row["run"] for row in trials}) == len(trials) == 13
    for row in recorded:
        assert row in trials
    for file, written in probes.items():
        assert file.stat().st_mtime_ns == written
    again = [int(line.rpartition(" ")[2]) for line in run.lines if line.startswith("training goes on")]
    if "main run" in moment:
        assert again, "\n".join(run.lines)
        assert all(each >= BEFORE + EVERY for each in again)


def test_a_notice_gives_a_checkpoint_in_time(machines: Machines, tiny: TinyRun, tmp_path: Path) -> None:
    """Nothing else would write one: the segment has no checkpoints of its own."""
    prepared(tiny)
    tiny.tree["train"] |= {"checkpoint_every": None}
    tiny.tree["stages"] = [{"name": "only", "steps": 900, "start": "uniform"}]
    undisturbed = Running(tiny, tmp_path / "undisturbed", "--address", machines.address).finish()
    run = Running(tiny, tmp_path / "out", "--address", machines.address)
    node = wait_for(lambda: rank(machines, 1) if run.step() >= 50 else None, what="training")
    told = run.step()
    accepted, why = GcsClient(address=machines.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the spot machine is wanted back",
        int((time.time() + 30) * 1000),
    )
    assert accepted, why
    machines.add(machines.resources[node])
    wait_for(lambda: list((run.output / "train").glob("*/checkpoint_*/state.json")), 25, "a checkpoint")
    time.sleep(1)
    machines.take(node)
    run.finish()
    (again,) = [int(line.rpartition(" ")[2]) for line in run.lines if line.startswith("training goes on")]
    assert again >= told
    assert last_losses(run.output) == pytest.approx(last_losses(undisturbed.output), abs=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_that_gets_sigterm_leaves_a_checkpoint(
    machines: Machines, tiny: TinyRun, tmp_path: Path, number: int
) -> None:
    """Nothing else would write one."""
    prepared(tiny)
    tiny.tree["train"] |= {"checkpoint_every": None}
    tiny.tree["stages"] = [{"name": "only", "steps": 600, "start": "uniform"}]
    run = Running(tiny, tmp_path / "out", "--address", machines.address)
    wait_for(lambda: run.step() >= 50, what="training")
    told, pid = run.step(), pid_of(machines, number)
    assert pid in {process.pid for process in processes()}
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: run.said("training goes on"), 60, "another beginning")
    assert not Path(f"/proc/{pid}").exists()
    run.finish()
    (again,) = [int(line.rpartition(" ")[2]) for line in run.lines if line.startswith("training goes on")]
    assert again >= told
    steps = [row["step"] for row in lines(run.output / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(5, 601, 5))


def last_losses(output: Path) -> dict[str, float]:
    losses: dict[str, float] = read_json(output / "result.json")["evaluations"][-1]["losses"]
    return losses


def test_a_probe_that_fails_for_good_leaves_its_domain_its_share(
    machines: Machines, tiny: TinyRun, tmp_path: Path
) -> None:
    prepared(tiny)
    tiny.tree["probe"] |= {"steps": 150}
    tiny.tree["cluster"] = {"max_retries": 0}
    run = Running(tiny, tmp_path / "out", "--address", machines.address)
    node = wait_for(lambda: next(iter(machines.hosting("probe:german")), None), what="the probe")
    replace(machines, node)
    run.finish()
    decision = read_json(run.output / "decisions/000/decision.json")
    lost = decision["details"]["lost"]
    assert "german" in lost
    assert run.said("probe german failed for good and is left out")
    if len(lost) == 1:
        assert decision["law_name"]
        assert decision["proposal"]["german"] == pytest.approx(1 / 3, abs=1e-6)
        assert decision["mixture"]["german"] == pytest.approx(1 / 3, abs=1e-6)
    else:
        assert decision["kept"] == "old"


def test_a_trial_that_fails_for_good_is_said_and_left_out(
    machines: Machines, tiny: TinyRun, tmp_path: Path
) -> None:
    prepared(tiny)
    tiny.tree["cluster"] = {"max_retries": 0}
    run = Running(tiny, tmp_path / "out", "--address", machines.address)
    node = wait_for(lambda: (run.step(), while_trials_run(machines, run))[1], what="a trial")
    replace(machines, node)
    run.finish()
    decision = read_json(run.output / "decisions/000/decision.json")
    failed = [
        row["run"] for row in lines(run.output / "decisions/000/trials.jsonl") if row["status"] == "failed"
    ]
    assert failed
    assert any(f"candidate {failed[0]}: objective failed" in line for line in run.lines)
    assert decision["usable"] == decision["trials"] - len([name for name in failed if name != "proposal"])
    assert decision["law_name"]


@pytest.mark.timeout(7200)
def test_a_soak_of_random_kills(
    machines: Machines, tiny: TinyRun, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Machines and drivers die at random moments, in run after run, until so many have died."""
    chance, began, killed, drivers, number = random.Random(7), time.monotonic(), 0, 0, 0
    prepared(tiny)
    while killed < KILLS:
        number += 1
        output = tmp_path / f"out{number}"
        run = Running(tiny, output, "--address", machines.address)
        recorded: dict[str, dict[str, Any]] = {}
        pause = time.monotonic() + chance.uniform(3, 12)
        while run.process.poll() is None:
            time.sleep(0.05)
            if killed >= KILLS or time.monotonic() < pause:
                continue
            recorded |= {row["run"]: row for row in lines(output / "decisions/000/trials.jsonl")}
            if chance.random() < 0.25:
                run.kill()
                run = Running(tiny, output, "--address", machines.address)
                drivers += 1
            else:
                replace(machines, chance.choice(list(machines.resources)))
            killed += 1
            pause = time.monotonic() + chance.uniform(3, 12)
        run.finish()
        assert_same(outcome(output), undisturbed)
        trials = {row["run"]: row for row in lines(output / "decisions/000/trials.jsonl")}
        assert all(trials[name] == row for name, row in recorded.items())
    print(f"{killed} kills, {drivers} of drivers, {number} runs, {time.monotonic() - began:.0f} s")
