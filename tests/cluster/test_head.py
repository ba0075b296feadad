"""A head or its GCS that dies under a run: one line with the way to go on, and elsewhere the run goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import SIDE, TRAINER
from tests.cluster.machines import Machines, wait_for
from tests.cluster.runs import Running, assert_same, outcome
from tests.cluster.test_gone import BEFORE, EVERY, prepared
from tests.support import TinyRun

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture
def others() -> Any:
    """Clusters of a test's own, made when asked for."""
    made: list[Machines] = []

    def make() -> Machines:
        made.append(Machines([TRAINER, TRAINER, SIDE, SIDE]))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_run_whose_head_dies_says_how_to_go_on_and_goes_on_elsewhere(
    tiny: TinyRun, tmp_path: Path, others: Any, victim: str
) -> None:
    first = others()
    run = Running(prepared(tiny), tmp_path / "out", "--address", first.address)
    wait_for(lambda: run.step() >= BEFORE + EVERY + 5, what="the second segment")
    (process,) = first.cluster.head_node.all_processes[victim]
    os.kill(process.process.pid, signal.SIGKILL)
    assert run.process.wait(300) not in (0, 3)
    said = "\n".join(run.lines)
    assert "Traceback" not in said
    errors = [line for line in run.lines if line.startswith("error: ")]
    assert errors, said
    assert "--resume" in errors[0]
    first.close()
    second = others()
    again = Running(tiny, tmp_path / "out", "--address", second.address, "--resume").finish(600)
    assert any(line.startswith("resumed from step ") for line in again.lines)
    whole = Running(tiny, tmp_path / "whole", "--address", second.address).finish(600)
    assert_same(outcome(again.output), outcome(whole.output))
