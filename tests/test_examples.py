"""The scripts in examples/ and the README's commands are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opmix_ray.config import load_config
from opmix_ray.sources.source import validate_sources
from tests.support import PATIENCE, ROOT, TinyRun, opmix, read_json


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", ["tune_run.py", "tuner.py"])
def test_scripts_search_with_tune(tiny: TinyRun, script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), str(tiny.write()), "6"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
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


@pytest.mark.seconds
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


PAPER = sorted(path.name for path in (ROOT / "examples" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings_are_valid_and_the_small_ones_find_their_text(name: str) -> None:
    """The GPU's files name texts that the reader has to bring."""
    config = load_config(ROOT / "examples" / "paper" / name)
    domains = set(config.data.domains)
    assert all(set(stage.domains or domains) <= domains for stage in config.stages)
    if ".gpu." not in name:
        assert validate_sources(config) == []
        assert (ROOT / "examples" / "paper" / name.replace(".yaml", ".gpu.yaml")).exists() or name.count(
            "."
        ) > 1


def test_the_annealing_setting_has_eight_domains_and_two_targets_that_no_domain_is() -> None:
    for name in ("anneal.yaml", "anneal.gpu.yaml"):
        config = load_config(ROOT / "examples" / "paper" / name)
        assert len(config.data.domains) == 8
        aims = {name for name, weight in config.objective().items() if weight}
        assert len(aims) == 2
        assert not aims & set(config.data.domains)
        assert [len(stage.decide_at) for stage in config.stages] == [1]


def test_what_the_paper_s_settings_read_has_its_licence() -> None:
    licences = (ROOT / "examples" / "paper" / "data" / "LICENSES.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples" / "paper" / "data").glob("*.jsonl.gz"):
        assert path.name in licences


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["midtrain", "instruct"])
def test_examples_of_continual_training_run_in_minutes(name: str, tmp_path: Path) -> None:
    """Every later stage weighs what is new against everything before, whose inside stays as it was."""
    done = opmix("run", f"examples/{name}.yaml", "--output", str(tmp_path / name))
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / name / "result.json")
    decisions = [
        read_json(tmp_path / name / f"decisions/{index:03d}/decision.json")
        for index in range(len(result["decisions"]))
    ]
    assert len(decisions) == 2
    for decision in decisions:
        old = decision["details"]["components"]["old"]
        assert next(iter(decision["details"]["components"])) == "old"
        scale = {decision["proposal"][domain] / share for domain, share in old.items() if share > 1e-3}
        assert max(scale) == pytest.approx(min(scale)), "the inside of the old data stays"
    first, last = result["evaluations"][0], result["evaluations"][-1]
    assert last["mean_loss"] < first["mean_loss"] - 1
    if name == "instruct":
        assert set(last["accuracy"]) == {"words_right", "languages_right", "letters_right"}
        assert last["mean_accuracy"] > first["mean_accuracy"]
    else:
        assert decisions[1]["details"]["effective_step"] == decisions[1]["step"] + 10
        assert result["ledger"]["idle"]["seconds"] > 0
