"""The command line inside the test's own process: the same `main`, without the start of a Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from opmix_ray.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()

    def only_error(self) -> str:
        """The single line of a command that was refused."""
        assert self.code == 2, self.err
        assert len(self.errors) == 1, self.err
        assert self.errors[0].startswith("error: ")
        assert "Traceback" not in self.out
        return self.errors[0]


Opmix = Callable[..., Ended]


@pytest.fixture
def opmix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Opmix:
    """`opmix("run", file, ...)`: what `opmix run FILE ...` prints and exits with."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["opmix", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call
