"""What surrounds the code: make targets that the pages and workflows name, one version, a citation, hooks."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import opmix_ray
from tests.docs.blocks import PAGES
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import build_constraints  # scripts, not packages
import release_check

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`make ([a-z][a-z -]*)", text) + re.findall(
        r"^make ([a-z][a-z -]*)", text, re.MULTILINE
    )
    named = {word for span in spans for word in span.split()}
    assert named <= TARGETS


def test_workflows_run_every_kind_of_test() -> None:
    called: set[str] = set()
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {}).get("target", [])
            for step in job["steps"]:
                words = re.match(r"make (\$\{\{ matrix.target \}\}|\S+)", step.get("run", ""))
                if words is not None:
                    called |= set(matrix) if "matrix" in words[1] else {words[1]}
    assert called <= TARGETS
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert called >= {"lint", "types", "test", "release-check"}
    assert called >= {
        found[1] for marker in markers if (found := re.search(r"\(make (test-[a-z]+)\)", marker))
    }


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "opmix_ray/version.py"
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert release_check.stated_version() == opmix_ray.__version__


def test_a_version_without_its_changes_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opmix_ray").mkdir()
    (tmp_path / "opmix_ray" / "version.py").write_text('__version__ = "9.9.9"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 9.9.90\n")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"CHANGELOG.md: has no section for 9\.9\.9"):
        release_check.stated_version()


@pytest.mark.seconds
def test_pinned_packages_install_on_the_oldest_python_that_is_promised() -> None:
    """pip refused `make test` on Debian 12: a package of the documentation asked for 3.11.5, and it has 3.11.2."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    installed = {_plain(found.metadata["Name"]): found.version for found in metadata.distributions()}
    here = [pin for pin in pins if installed.get(_plain(pin.split("==")[0])) == pin.split("==")[1]]
    assert len(here) > len(pins) / 2
    assert list(build_constraints.too_new(here)) == []


def test_a_pin_that_only_a_later_python_takes_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "late-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: late\nVersion: 2.0\nRequires-Python: >=3.11.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(build_constraints.too_new(["late==2.0"])) == [
        "late 2.0 needs Python >=3.11.5, and the project promises 3.11.0"
    ]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_it_ships(tmp_path: Path) -> None:
    """As `make release-check` does, which also installs it into an empty environment."""
    release_check.check_wheel(release_check.build(tmp_path), opmix_ray.__version__)


def test_hooks_call_what_make_calls() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        program = hook["entry"].split()[0].replace(".venv/bin", "$(BIN)")
        assert program in MAKEFILE


def test_the_map_of_the_code_names_every_room_and_no_module_that_is_not_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "opmix_ray"
    rooms = {place.name for place in package.iterdir() if (place / "__init__.py").exists()}
    table = text.partition("## Rooms")[2].partition("## From")[0]
    assert rooms <= set(re.findall(r"`(\w+)`", table))
    named = set(re.findall(r"`(\w+)\.(\w+)`", text)) - {("state", "json")}
    assert named
    assert [name for name in named if not (package / name[0] / f"{name[1]}.py").exists()] == []


def test_decisions_stay_short() -> None:
    lines = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150, "long measurements belong in benchmarks/results/README.md"
    entries = re.split(
        r"^- ", "\n".join(line for line in lines if not line.startswith("#")), flags=re.MULTILINE
    )[1:]
    assert [entry[:40] for entry in entries if not re.search(r"\(20\d\d-\d\d-\d\d\)\s*$", entry)] == []
