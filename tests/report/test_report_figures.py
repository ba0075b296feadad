"""The figures as files."""

from __future__ import annotations

import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from opmix_ray.errors import UserError
from opmix_ray.report import figures, page
from opmix_ray.report.gather import gather
from opmix_ray.storage import Storage


@pytest.mark.seconds
def test_every_figure_is_written_in_every_format(hostile: Storage) -> None:
    written = [Path(path) for path in figures(hostile)]
    names = {path.stem for path in written}
    assert {"mixture", "held-out-loss", "training-loss", "delivered", "cost", "gains"} <= names
    assert {f"decision-000-{name}" for name in ("candidates", "mixtures", "probes", "law")} <= names
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ElementTree.parse(path)
    assert len(written) == 2 * len(names)


def test_an_unknown_format_is_refused(hostile: Storage) -> None:
    with pytest.raises(UserError, match="no such image format"):
        figures(hostile, formats=("bmp3",))


@pytest.mark.seconds
def test_what_is_written_beside_bars_has_room(full: Storage, hostile: Storage) -> None:
    for storage in (full, hostile):
        for group in page._groups(gather(storage)):
            if not group.panels[0].categories:
                continue
            with matplotlib.rc_context(page._STYLE):
                figure = page._draw(group)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
                    FigureCanvasAgg(figure).draw()
            legends = [legend.get_window_extent() for legend in figure.legends]
            for axes in figure.axes:
                boxes = [text.get_window_extent() for text in axes.texts]
                assert all(box.x1 <= figure.bbox.x1 for box in boxes), group.name
                assert not any(box.overlaps(legend) for box in boxes for legend in legends), group.name
