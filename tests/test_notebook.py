"""In a real notebook kernel a run's progress is a bar in the cell's output."""

from __future__ import annotations

import os

import pytest

from tests.support import ROOT, TinyRun


@pytest.mark.slow
def test_a_cell_shows_what_was_prepared(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel")
    client, format_ = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    tiny.tree["data"]["cache"] = str(tiny.directory / "cache")
    code = (
        "import opmix_ray\nfrom opmix_ray.run import notebook\nassert notebook.in_notebook()\n"
        "seen = []\nupdates = notebook._updates\n"
        "def both():\n    show = updates()\n    return lambda page: (seen.append(page), show(page))\n"
        "notebook._updates = both\n"
        f"prepared = opmix_ray.prepare({str(tiny.write())!r})\n"
        "assert any('<progress' in page for page in seen)\nsorted(prepared.domains)"
    )
    notebook = format_.v4.new_notebook(cells=[format_.v4.new_code_cell(code)])
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output["data"] for output in notebook.cells[0].outputs if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert len(pages) == 1
    assert "prepared code" in pages[0]
    assert "code" in shown[-1]["text/plain"]
