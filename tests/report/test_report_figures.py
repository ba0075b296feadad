"""The figures as files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from opmix_ray.errors import UserError
from opmix_ray.report import figures
from opmix_ray.storage import Storage


def test_every_figure_is_written_in_every_format(hostile: Storage) -> None:
    written = [Path(path) for path in figures(hostile)]
    names = {path.stem for path in written}
    assert {"mixture", "held-out-loss", "training-loss", "delivered", "cost", "gains"} <= names
    assert {f"decision-000-{name}" for name in ("candidates", "proposal", "probes", "law")} <= names
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ElementTree.parse(path)
    assert len(written) == 2 * len(names)


def test_an_unknown_format_is_refused(hostile: Storage) -> None:
    with pytest.raises(UserError, match="no such image format"):
        figures(hostile, formats=("bmp3",))
