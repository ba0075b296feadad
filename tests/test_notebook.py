"""In a real notebook kernel a run's progress is a bar in the cell's output."""

from __future__ import annotations

import os

import pytest

from tests.support import ROOT, TinyRun

BEGIN = """
import opmix_ray
from opmix_ray.commands import progress
assert progress.in_notebook()
seen, updates = [], progress._updates

def both():
    show = updates()
    return lambda page: (seen.append(page), show(page))

progress._updates = both
"""
BARS = """
bars = {page[5:page.index(" <progress")] for page in seen if page.startswith("<div>")}
assert bars >= {"stage only", "probes", "candidates"}, bars
result["steps"]
"""


@pytest.mark.slow
def test_a_cell_shows_bars_while_it_waits_and_what_came_out(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipykernel")
    client, format_ = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    file, output = str(tiny.write()), str(tiny.directory / "out")
    cells = [
        f"{BEGIN}prepared = opmix_ray.prepare({file!r})\n"
        "assert any('<progress' in page for page in seen)\nsorted(prepared.domains)",
        f"seen.clear()\nresult = opmix_ray.run({file!r}, output={output!r}){BARS}",
    ]
    notebook = format_.v4.new_notebook(cells=[format_.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    pages, values = [], []
    for cell in notebook.cells:
        shown = [output["data"] for output in cell.outputs if "data" in output]
        pages.append([data["text/html"] for data in shown if "text/html" in data])
        values.append(shown[-1]["text/plain"])
    assert [len(page) for page in pages] == [1, 1], "one place that is updated, in each cell"
    assert "prepared code" in pages[0][0]
    assert "code" in values[0]
    assert "decision 0:" in pages[1][0]
    assert "<progress" not in pages[1][0], "nothing is waited for any more"
    assert values[1] == "12"
