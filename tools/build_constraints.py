"""Write constraints.txt from the packages installed in this environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEADER = (
    "# One tested set, for Python 3.11 on Linux x86-64; `pip install -c constraints.txt ...`. "
    "Made by `make constraints`.\n"
)
LEFT_OUT = ("pip==", "setuptools==", "wheel==", "-e ", "opmix")


def main() -> None:
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line.partition("+")[0] for line in frozen if "==" in line and not line.startswith(LEFT_OUT)]
    (Path(__file__).resolve().parent.parent / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
