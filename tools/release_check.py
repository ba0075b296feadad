"""Build the wheel, install it into an empty environment, and try it there: `make release-check`.

    python tools/release_check.py [--short] [ARGUMENTS OF PIP ...]

What is tried is what a user has: no checkout, no development tools, another working directory. `--short` leaves out
the small run. Needs pip alone; anything that goes wrong ends it with exit code 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["stages.0.steps=20", "stages.0.decide_at=[0.5]", "search.trials=12", "probe.steps=4"]


def main() -> None:
    arguments = sys.argv[1:]
    short = "--short" in arguments
    pip_arguments = [argument for argument in arguments if argument != "--short"]
    version = stated_version()
    with tempfile.TemporaryDirectory(prefix="opmix-release-") as name:
        place = Path(name)
        wheel = build(place)
        check_wheel(wheel, version)
        opmix = install(wheel, place / "venv", pip_arguments)
        check_installed(opmix, place, version, short=short)
        (ROOT / "dist").mkdir(exist_ok=True)
        shutil.copy2(wheel, ROOT / "dist")
    print(f"dist/{wheel.name} is ready: tag v{version}, then upload it")


def stated_version() -> str:
    """The version in the package, which must have its section in CHANGELOG.md."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "opmix_ray/version.py").read_text(), re.MULTILINE)
    assert found is not None
    if not re.search(rf"^## {re.escape(found[1])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        sys.exit(f"CHANGELOG.md: has no section for {found[1]}; add `## {found[1]}` with what changed")
    return found[1]


def build(place: Path) -> Path:
    """The wheel of this checkout."""
    made = place / "dist"
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", made, ROOT)
    (wheel,) = made.glob("*.whl")
    return wheel


def check_wheel(wheel: Path, version: str) -> None:
    """Its name, and that it holds what the package reads and nothing of the checkout beside."""
    assert wheel.name == f"opmix_ray-{version}-py3-none-any.whl", wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"opmix_ray", f"opmix_ray-{version}.dist-info"}, tops
    for needed in ("py.typed", "draw/style.css", "_shipped/examples/quickstart.yaml"):
        assert f"opmix_ray/{needed}" in names, needed
    assert any(name.startswith("opmix_ray/_shipped/search_spaces/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def install(wheel: Path, environment: Path, pip_arguments: list[str]) -> Path:
    """The command `opmix` in a new environment that holds nothing but the wheel and what it needs."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # torch first, so that an index with builds for this machine may be named
    call(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        *pip_arguments,
        "-c",
        ROOT / "constraints.txt",
        "torch",
        wheel,
    )
    call(python, "-m", "pip", "check")
    return environment / "bin" / "opmix"


def check_installed(opmix: Path, place: Path, version: str, *, short: bool) -> None:
    """The command as a new user calls it."""
    assert call(opmix, "--version", cwd=place).strip() == f"opmix {version}"
    call(opmix, "doctor", cwd=place)
    if short:
        return
    settings = [part for setting in SMALL for part in ("--set", setting)]
    call(opmix, "demo", *settings, cwd=place)
    assert json.loads((place / "runs/demo/result.json").read_text())["decisions"]
    assert "</html>" in (place / "runs/demo/report.html").read_text()


def call(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; its failure is ours."""
    print("$", *command, flush=True)
    # without what makes this checkout importable
    surroundings = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=surroundings,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}failed with {done.returncode}: {' '.join(str(part) for part in command)}")
    return done.stdout


if __name__ == "__main__":
    main()
