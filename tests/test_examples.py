"""The scripts in examples/ and the README's commands are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from opmix_ray.config import load_config
from tests.support import ROOT, TinyRun


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", ["tune_run.py", "tuner.py"])
def test_scripts_search_with_tune(tiny: TinyRun, script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), str(tiny.write()), "6"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tiny.directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "best of 6" in done.stdout
    shares = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=0.002)


def test_the_quickstart_loads_and_decides_at_least_once_on_at_least_twelve_candidates() -> None:
    config = load_config(ROOT / "examples" / "quickstart.yaml")
    assert len(config.data.domains) >= 5
    assert sum(len(stage.decide_at) for stage in config.stages) >= 1
    assert config.search.trials >= 12


def test_the_configuration_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/build_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^opmix ([a-z]+)", text, flags=re.MULTILINE))
    from opmix_ray.cli import app

    known = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    assert commands
    assert commands <= known


def test_files_that_the_readme_links_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
