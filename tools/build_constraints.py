"""Write constraints.txt from the packages installed in this environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

HEADER = (
    "# One tested set, for Python 3.11 on Linux x86-64; `pip install -c constraints.txt ...`. "
    "Made by `make constraints`.\n"
)
LEFT_OUT = ("pip==", "setuptools==", "wheel==", "-e ", "opmix")
ROOT = Path(__file__).resolve().parent.parent


def too_new(lines: list[str]) -> Iterator[str]:
    """Those of the installed `name==version` lines that do not install on the oldest Python that the project promises.

    `pip freeze` is taken on one patch release. A package may ask for a later one than others have: 3.11.5, and
    Debian 12 has 3.11.2.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    for line in lines:
        name, _, version = line.partition("==")
        needs = metadata.metadata(name)["Requires-Python"]
        if needs and oldest not in SpecifierSet(needs):
            yield f"{name} {version} needs Python {needs}, and the project promises {oldest}"


def main() -> None:
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line.partition("+")[0] for line in frozen if "==" in line and not line.startswith(LEFT_OUT)]
    if refused := list(too_new(lines)):
        raise SystemExit("\n".join(refused) + "\ninstall an older version and run again")
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
