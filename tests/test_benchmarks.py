"""Every benchmark still runs: the `--quick` mode of each, in a process of its own, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.long
@pytest.mark.parametrize("name", ["trial_cost", "throughput", "loader", "prepare", "gradient_rows"])
def test_a_benchmark_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])
