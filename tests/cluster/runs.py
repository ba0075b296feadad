"""Runs in processes of their own on a cluster, what they say, and what they end with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support import PATIENCE, ROOT, TinyRun, read_json


class Running:
    """`opmix run` as a process; its lines are read as they come.

    A test that fails leaves its runs behind, and the next one waits for the machines that they hold: see `end_all`.

    Args:
        configuration: to run; or its file.
        output: of the run.
        arguments: further words of the command line.
    """

    alive: ClassVar[list[Running]] = []

    def __init__(self, configuration: TinyRun | Path, output: Path, *arguments: str) -> None:
        self.output = output
        self.alive.append(self)
        file = configuration if isinstance(configuration, Path) else configuration.write()
        command = [sys.executable, "-m", "opmix_ray", "run", str(file), "--output", str(output), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, words: str) -> bool:
        """Whether a line has these words; fails where the run is over without them."""
        found = any(words in line for line in self.lines)
        assert found or self.process.poll() is None, "\n".join(self.lines)
        return found

    def step(self) -> int:
        """The last step in metrics.jsonl; -1 before any."""
        assert self.process.poll() is None, "\n".join(self.lines)
        rows = lines(self.output / "metrics.jsonl")
        return max((row["step"] for row in rows), default=-1)

    def finish(self, seconds: float = PATIENCE) -> Running:
        """Wait for its end, which must be a good one."""
        code = self.process.wait(seconds)
        self.finished_reading()
        assert code == 0, "\n".join(self.lines)
        return self

    def finished_reading(self) -> None:
        """Wait for the last lines of a run that has ended."""
        self._reader.join(10)

    def kill(self) -> None:
        """End the driver without a word."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @classmethod
    def end_all(cls) -> None:
        """End what a test has left running."""
        for run in cls.alive:
            if run.process.poll() is None:
                run.kill()
        cls.alive.clear()


def lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def outcome(output: Path) -> dict[str, Any]:
    """What a run came to, without what depends on the clock."""
    result = read_json(output / "result.json")
    trained = [row for row in lines(output / "metrics.jsonl") if row["kind"] == "train"]
    return {
        "mixture": result["final_mixture"],
        "kept": [decision["kept"] for decision in result["decisions"]],
        "losses": [evaluation["losses"] for evaluation in result["evaluations"]],
        "delivered": [row["delivered"] for row in trained],
        "steps": [row["step"] for row in trained],
        "train": [row["loss"] for row in trained],
        "ratios": (output / "decisions/000/ratios.csv").read_text(),
        "tokens": {name: result["ledger"][name]["tokens"] for name in ("main", "probes", "search")},
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """The same decision, batches and losses."""
    for key in ("kept", "delivered", "steps", "ratios", "tokens"):
        assert found[key] == expected[key], key
    assert found["mixture"] == pytest.approx(expected["mixture"], abs=1e-6)
    assert found["train"] == pytest.approx(expected["train"], abs=tolerance)
    assert len(found["losses"]) == len(expected["losses"])
    for mine, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert mine == pytest.approx(theirs, abs=tolerance)


def spread(tree: dict[str, Any]) -> None:
    """Give the main run machines called `trainer`, probes and trials those called `side`."""
    tree["train"] |= {"workers": 2, "resources": {"trainer": 1}}
    tree["probe"] |= {"resources": {"side": 1}}
    tree["search"] |= {"resources": {"side": 1}}
