"""Progress where Python is used by hand: bars in a notebook, live bars or lines in a terminal."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from opmix_ray.commands.progress import PlainProgress, make_progress
from opmix_ray.decision.progress import Progress
from opmix_ray.model.probe import Probe
from opmix_ray.trials.rows import TrialRow

LINES = 12  # shown under the bar
SECONDS = 0.2  # between two updates of the page


def progress_here() -> Progress:
    """What fits the place: a notebook's cell, a terminal, or a pipe."""
    return NotebookProgress(_updates()) if in_notebook() else make_progress(Console())


def in_notebook() -> bool:
    """Whether this is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _updates() -> Callable[[str], None]:
    """A place in the cell's output whose content can be replaced."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda page: handle.update(HTML(page))


class NotebookProgress(PlainProgress):
    """One bar for what is waited for now, and the last lines about what ended.

    Args:
        update: replaces what the cell shows by a piece of HTML.
    """

    def __init__(self, update: Callable[[str], None]) -> None:
        super().__init__(Console(quiet=True))
        self._update = update
        self._lines: list[str] = []
        self._bar: tuple[str, float, float, str] | None = None  # what, done, total, note
        self._at = 0.0

    def message(self, text: str) -> None:
        self._lines = [*self._lines, text][-LINES:]
        self._draw(now=True)

    def preparing(self, name: str, done: int, total: int) -> None:
        self._bar = (f"preparing {name}", done, max(1, total), "")
        super().preparing(name, done, total)
        self._draw()

    def segment_started(self, stage: str, step: int, end: int, mixture: dict[str, float]) -> None:
        self._bar = (f"stage {stage}", step, end, "")
        super().segment_started(stage, step, end, mixture)

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train" and self._bar is not None:
            note = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
            self._bar = (self._bar[0], row["step"], self._bar[2], note)
            self._draw()
        elif row["kind"] == "evaluation":
            super().row(row)

    def decision_started(self, index: int, step: int, components: Sequence[str], trials: int) -> None:
        self._bar = ("probes", 0, len(components), "")
        super().decision_started(index, step, components, trials)

    def probe_done(self, probe: Probe) -> None:
        if self._bar is not None:
            self._bar = ("probes", self._bar[1] + 1, self._bar[2], probe.name)
        self._draw(now=True)

    def trial(self, row: TrialRow, best: TrialRow | None, trials: int) -> None:
        done = self._bar[1] + 1 if self._bar is not None and self._bar[0] == "candidates" else 1
        self._bar = ("candidates", done, trials, f"best {best.objective:.4f}" if best else row.status)
        self._draw()

    def close(self) -> None:
        self._bar = None
        self._draw(now=True)

    def _draw(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._at < SECONDS:
            return
        self._at = time.monotonic()
        parts = []
        if self._bar is not None:
            what, done, total, note = self._bar
            share = f"{done:,.0f} of {total:,.0f}"
            parts.append(
                f'<div>{html.escape(what)} <progress value="{done}" max="{total}"></progress> '
                f"{share} {html.escape(note)}</div>"
            )
        parts.append(f"<pre>{html.escape(chr(10).join(self._lines))}</pre>")
        self._update("".join(parts))
