"""Runs side by side: the same rows as one after another, and nothing that goes on when the command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opmix_ray.compare import compare
from tests.cluster.machines import wait_for
from tests.support import ROOT, TinyRun, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def command(file: Path, output: Path) -> list[str]:
    words = ["compare", str(file), "--seeds", "2", "--strategies", "uniform,odm", "--parallel", "2"]
    return [sys.executable, "-m", "opmix_ray", *words, "--output", str(output)]


def runs_below(output: Path) -> list[int]:
    """Processes whose command names a run of the comparison."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "run" in words and any(str(output / "runs") in word for word in words):
            found.append(process.pid)
    return found


def test_the_same_rows_and_a_command_that_is_ended_takes_its_runs_along(tiny: TinyRun) -> None:
    tiny.tree["stages"][0] |= {"steps": 300, "decide_at": []}
    tiny.tree["train"] |= {"checkpoint_every": None, "log_every": 20}
    file, output = tiny.write(), tiny.directory / "beside"
    environment = os.environ | {"RAY_ADDRESS": "local"}
    first = subprocess.Popen(
        command(file, output), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip
    wait_for(lambda: list(output.glob("runs/*/*/metrics.jsonl")))
    assert len(runs_below(output)) == 2
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode not in (0, 2), said
    assert runs_below(output) == []
    assert not (output / "compare.json").exists() or not read_json(output / "compare.json")["complete"]

    done = subprocess.run(
        command(file, output), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    beside = read_json(output / "compare.json")
    assert [(row["strategy"], row["seed"]) for row in beside["rows"]] == [
        ("uniform", 3), ("odm", 3), ("uniform", 4), ("odm", 4),
    ]  # fmt: skip
    alone = compare(tiny.load(), ["uniform", "odm"], seeds=2, output=str(tiny.directory / "alone"))
    for mine, other in zip(beside["rows"], alone["rows"], strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], abs=1e-5)
        assert (mine["steps"], mine["tokens"]) == (other["steps"], other["tokens"])
