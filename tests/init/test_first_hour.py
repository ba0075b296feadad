"""As a new user: an empty directory, three JSONL files, two commands, a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import DOMAINS, ROOT


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_commands_from_three_files_to_a_report(tiny_data: Path, tmp_path: Path) -> None:
    for name in DOMAINS:
        (tmp_path / f"{name}.jsonl").write_bytes((tiny_data / f"{name}.jsonl").read_bytes())
    environment = os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def opmix(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "opmix_ray", *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    files = [f"{name}.jsonl" for name in DOMAINS]
    planned = json.loads(opmix("init", ".", "--minutes", "1", "--json", "--data", *files))["plan"]
    began = time.monotonic()
    result = json.loads(opmix("run", "opmix.yaml", "--json"))
    took = time.monotonic() - began
    print(f"planned for {planned['seconds']:.0f} s, took {took:.0f} s")
    assert result["steps"] == planned["steps"]
    assert len(result["decisions"]) == len(planned["decide_at"])
    assert result["evaluations"][-1]["mean_loss"] < result["evaluations"][0]["mean_loss"]
    (report,) = tmp_path.glob("runs/*/report.html")
    assert "A llama model with fresh weights was trained for" in report.read_text()
