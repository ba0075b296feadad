"""The page in a real browser: width of a phone, light and dark. Skipped where there is no Chromium.

Screenshots are kept in the directory that OPMIX_ARTEFACTS names, if it names one.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from opmix_ray.commands import web
from opmix_ray.report import write_report
from opmix_ray.storage import Storage
from tests.report.synthetic import PLAIN, make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DARK = ("--blink-settings=preferredColorScheme=0",)
PHONE = 360
# The page in a frame of a given width, and what it measures: a window cannot be made as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0"><iframe id="f" style="width:{width}px;height:{height}px;border:0"
srcdoc="{page}"></iframe><p id="measured"></p><script>
document.getElementById("f").onload = event => {{
  const root = event.target.contentDocument;
  root.querySelectorAll("details").forEach(part => part.open = true);
  const outside = [...root.querySelectorAll("svg text")].filter(text => {{
    const box = text.getBoundingClientRect(), frame = text.closest("svg").getBoundingClientRect();
    return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
  }}).length;
  const small = Math.min(...[...root.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height)
    .filter(height => height));
  document.getElementById("measured").textContent =
    [root.documentElement.scrollWidth, outside, small.toFixed(1)].join(" ");
}};</script>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]


def browse(page: Path | str, *options: str) -> str:
    assert BROWSER is not None
    address = page if isinstance(page, str) else page.as_uri()
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measure(report: Path, place: Path, width: int) -> tuple[int, int, float]:
    """Width the page takes, texts that stick out of their drawing, height of the smallest text in pixels."""
    frame = place / "frame.html"
    frame.write_text(
        FRAME.format(width=width, height=900, page=html.escape(report.read_text(encoding="utf-8")))
    )
    found = re.search(r'<p id="measured">(\d+) (\d+) ([\d.]+)</p>', browse(frame, "--dump-dom"))
    assert found is not None
    return int(found[1]), int(found[2]), float(found[3])


@pytest.mark.parametrize("width", [PHONE, 800, 1200])
@pytest.mark.parametrize("run", ["full", "hostile"])
def test_nothing_sticks_out_and_texts_can_be_read(
    request: pytest.FixtureRequest, tmp_path: Path, run: str, width: int
) -> None:
    storage: Storage = request.getfixturevalue(run)
    taken, outside, smallest = measure(Path(write_report(storage)), tmp_path, width)
    assert taken <= width
    assert outside == 0
    assert smallest >= 9


@pytest.mark.parametrize(("name", "options"), [("light", ()), ("dark", DARK)])
def test_screenshots(full: Storage, tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    place = Path(os.environ.get("OPMIX_ARTEFACTS") or tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    picture = place / f"report-{name}.png"
    browse(Path(write_report(full)), "--window-size=1200,3000", f"--screenshot={picture}", *options)
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize(("name", "options"), [("light", ()), ("dark", DARK)])
def test_screenshots_at_a_phones_width(
    full: Storage, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    place = Path(os.environ.get("OPMIX_ARTEFACTS") or tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    page = html.escape(Path(write_report(full)).read_text(encoding="utf-8"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=PHONE, height=6000, page=page))
    picture = place / f"report-phone-{name}.png"
    browse(frame, f"--window-size={PHONE + 140},6000", f"--screenshot={picture}", *options)
    assert picture.stat().st_size > 20_000


def test_a_click_on_a_heading_sorts_and_sums_stay_below(full: Storage, tmp_path: Path) -> None:
    page = Path(write_report(full)).read_text(encoding="utf-8")
    script = (
        "document.getElementById('f').onload = event => {"
        " const box = [...event.target.contentDocument.querySelectorAll('#loss .scroll')].at(-1);"
        " box.querySelectorAll('thead button')[2].click();"
        " document.getElementById('measured').textContent ="
        " [...box.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent + '=' + row.cells[2].textContent)"
        " .join(';'); };"
    )
    frame = tmp_path / "sorted.html"
    # the page's own policy runs its own script alone: the frame's script works from outside, as a user's hand does
    frame.write_text(
        f'<!doctype html><iframe id="f" srcdoc="{html.escape(page)}"></iframe><p id="measured"></p>'
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    found = re.search(r'<p id="measured">([^<]+)</p>', browse(frame, "--dump-dom"))
    assert found is not None
    rows = [entry.rpartition("=") for entry in found[1].split(";")]
    values = [float(value) for _, _, value in rows[:-2]]
    assert values == sorted(values)
    assert len(values) == 6
    assert rows[-1][0] == "objective"


def test_the_live_page_asks_for_news_and_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", decisions=1, trials=6, domains=PLAIN[:3], steps=60)
    run.delete("result.json")
    run.write_json("state.json", run.read_json("state.json") | {"finished": False, "done": 2, "step": 20})
    row = next(line for line in map(json.loads, run.lines("metrics.jsonl")) if line["kind"] == "train")
    look, looks = web.look, iter(range(20, 60))

    def trained_on(directory: str) -> str:
        step = next(looks)
        run.write_text("metrics.jsonl", json.dumps(row | {"step": step, "loss": step / 10}) + "\n")
        return look(directory)

    monkeypatch.setattr(web, "look", trained_on)
    monkeypatch.setattr(web, "LEAST_PAUSE", 0.0)
    monkeypatch.setattr(web, "REST", 0.0)
    with web.serving(run.uri) as address:
        seen = browse(address, "--virtual-time-budget=9000", "--dump-dom")
    assert next(looks) >= 22, "asked again"
    shown = re.search(r"<b>(\d+) of 60</b>", seen)
    assert shown is not None
    assert int(shown[1]) > 20, "and what came is in its place"
