"""Ctrl-C and a full disk: one line, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opmix_ray.storage import fault
from opmix_ray.train.checkpoint import TrainState, read_state
from tests.support import PATIENCE, ROOT, TinyRun, opmix, read_json

STOPPED = "stopped; the same command with --resume goes on from the last checkpoint\n"


def _interrupt_after(
    tiny: TinyRun, output: Path, file: str, rows: int, *more: str
) -> subprocess.CompletedProcess:
    """Start a run and send it SIGINT once a file of its output has so many lines.

    Tests that a shell started in the background ignore SIGINT, and what they start would too.
    """
    command = tiny.command("run", str(tiny.file), "--output", str(output), *more)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not (output / file).exists() or (output / file).read_text().count("\n") < rows:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.promise
@pytest.mark.timeout(1800)
def test_interrupted_while_it_trains_and_while_it_searches(tiny: TinyRun) -> None:
    output = tiny.directory / "out"
    tiny.tree["stages"][0] |= {"steps": 300, "decide_at": [0.03]}
    tiny.tree["search"]["trials"] = 200
    tiny.write()
    ended = _interrupt_after(tiny, output, "metrics.jsonl", 3)
    assert (ended.returncode, ended.stderr) == (130, STOPPED)
    first = read_json(output / "state.json")
    assert (first["done"], first["finished"]) == (1, False)
    saved = _checkpoint(tiny.directory).step
    ended = _interrupt_after(tiny, output, "decisions/000/trials.jsonl", 2, "--resume")
    assert (ended.returncode, ended.stderr) == (130, STOPPED)
    assert saved > 0
    assert f"resumed from step {saved} of 300" in ended.stdout
    assert read_json(output / "state.json")["step"] == 9


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2.6 MB: one checkpoint fits in, two do not."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if shutil.which("mount") is None or not _mount(
        "-t", "tmpfs", "-o", "size=2600k", "tmpfs", str(directory)
    ):
        pytest.skip("no file system can be mounted here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def _rows(disk: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (disk / "out" / "metrics.jsonl").read_text().splitlines()]


def _checkpoint(directory: Path) -> TrainState:
    """The state of the last checkpoint that is whole."""
    places = [path for path in (directory / "out" / "train").glob("*/checkpoint_*") if fault(path) is None]
    return max((read_state(place) for place in places), key=lambda state: state.step)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_full_disk_ends_the_run_and_more_space_lets_it_finish(tiny: TinyRun, disk: Path) -> None:
    tiny.tree["stages"][0]["decide_at"] = []
    tiny.tree["train"]["max_failures"] = 0
    arguments = ["run", str(tiny.write()), "--output", str(disk / "out")]
    ended = opmix(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert "disk" in ended.stderr
    assert "free some space and run again with --resume" in ended.stderr
    state = read_json(disk / "out" / "state.json")
    assert (state["done"], state["finished"]) == (1, False)
    assert not (disk / "out" / "result.json").exists()
    # What was trained is in the checkpoint; whether it came to metrics.jsonl before the disk was full is chance.
    rows = _checkpoint(disk).rows  # they hold the tokens per second, which no second training would repeat
    assert [row["step"] for row in rows] == [0, 2]
    assert _mount("-o", "remount,size=64m", str(disk))
    ended = opmix(*arguments, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert _rows(disk)[:2] == rows, "what was trained before had to be trained again"
    result = read_json(disk / "out" / "result.json")
    assert [entry["step"] for entry in result["evaluations"]] == [0, 12]
    assert result["evaluations"][1]["mean_loss"] < result["evaluations"][0]["mean_loss"]


def test_an_interrupt_that_another_handler_swallows_is_still_seen() -> None:
    """As Train's own does, when it comes after the last step of a segment."""
    from opmix_ray.signals import StopSignals

    before = signal.getsignal(signal.SIGINT)
    outer = StopSignals()
    inner = StopSignals()
    signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        assert (outer.stopped(), inner.stopped()) == (0, 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert inner.stopped() == signal.SIGINT
    finally:
        inner.close()
        signal.signal(signal.SIGINT, before)
    assert outer.stopped() == signal.SIGINT
    outer.close()
    assert signal.set_wakeup_fd(-1) == -1
