"""What a person sees of a run: live bars in a terminal, bars in a notebook, plain lines elsewhere; its last words."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from opmix_ray.commands.console import cell
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, summary
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.model.probe import Probe
from opmix_ray.output.result import kept_words, perplexity_of
from opmix_ray.runner.base import beginning, start_stage
from opmix_ray.trials.rows import TrialRow


class PlainProgress(Progress):
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._prepared: set[str] = set()

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def preparing(self, name: str, done: int, total: int) -> None:
        if done >= total and name not in self._prepared:
            self._prepared.add(name)
            self.message(f"prepared {name} ({total / 1e6:.1f} MB of files)")

    def segment_started(self, stage: str, step: int, end: int, mixture: dict[str, float]) -> None:
        self.message(f"stage {stage}: steps {step} to {end} with {_shares(mixture)}")

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self.message(
                f"step {row['step']}: loss {row['loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s, "
                f"learning rate {row['learning_rate']:.2e}"
            )
        elif row["kind"] == "evaluation":
            right = row.get("accuracy", {})
            losses = {name: loss for name, loss in row["losses"].items() if name not in right}
            kept = f" (kept of step {row['kept']})" if "kept" in row else ""
            self.message(f"step {row['step']}: held-out loss {_losses(losses)}{_accuracies(right)}{kept}")

    def decision_started(self, index: int, step: int, components: Sequence[str], trials: int) -> None:
        self.message(f"decision {index} at step {step}: {len(components)} probes, then {trials} candidates")

    def probe_done(self, probe: Probe) -> None:
        last = f"loss {probe.losses[-1]:.4f}, " if probe.losses else ""
        self.message(f"probe {probe.name}: {last}{probe.seconds:.1f} s")

    def trial(self, row: TrialRow, best: TrialRow | None, trials: int) -> None:
        shown = f"{row.objective:.4f}" if row.usable else row.status
        best_text = f", best {best.objective:.4f} ({best.run})" if best else ""
        self.message(f"candidate {row.run}: objective {shown}{best_text}; {_shares(row.ratios)}")

    def decided(self, decision: Decision) -> None:
        kept = "new mixture" if decision.kept == "proposal" else "old mixture kept"
        self.message(f"decision {decision.index}: {kept}, because {decision.reason}")
        step = decision.details.get("effective_step", decision.step)
        self.message(f"mixture from step {step}: {_shares(decision.mixture)}")

    def in_background(self) -> Progress:
        return BesideProgress(self)


class BesideProgress(PlainProgress):
    """Lines about a decision that is made while training goes on; the bars of training stay as they are.

    Args:
        progress: of the training.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def message(self, text: str) -> None:
        self._progress.message(text)

    def trial(self, row: TrialRow, best: TrialRow | None, trials: int) -> None:
        """Nothing: candidates are many."""


class RichProgress(PlainProgress):
    """One live bar per thing a person waits for, finished ones as lines above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False), console=console, transient=True,
        )  # fmt: skip
        self._task: Any = None
        self._waiting: dict[str, float] = {}
        self._bars.start()

    def message(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def preparing(self, name: str, done: int, total: int) -> None:
        if self._task is None:
            self._begin(f"preparing {name}", max(1, total))
        self._bars.update(self._task, completed=done, total=max(1, total), description=f"preparing {name}")
        if done >= total:
            self._end()
        super().preparing(name, done, total)

    def segment_started(self, stage: str, step: int, end: int, mixture: dict[str, float]) -> None:
        super().segment_started(stage, step, end, mixture)
        self._begin(f"stage {stage}", end, step)

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train" and self._task is not None:
            note = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            self._bars.update(self._task, completed=row["step"], note=note, refresh=True)
        elif row["kind"] == "evaluation":
            super().row(row)

    def decision_started(self, index: int, step: int, components: Sequence[str], trials: int) -> None:
        super().decision_started(index, step, components, trials)
        self._begin("probes", len(components))

    def probe_started(self, name: str) -> None:
        self._waiting[name] = time.monotonic()
        if self._task is not None:
            self._bars.update(self._task, note=", ".join(self._waiting))

    def probe_done(self, probe: Probe) -> None:
        self._waiting.pop(probe.name, None)
        if self._task is not None:
            self._bars.update(self._task, advance=1, note=", ".join(self._waiting))
        super().probe_done(probe)

    def trial(self, row: TrialRow, best: TrialRow | None, trials: int) -> None:
        if self._task is None or self._bars.tasks[-1].description != "candidates":
            self._begin("candidates", trials)
        note = f"best {best.objective:.4f}: {_shares(best.ratios)}" if best else row.status
        self._bars.update(self._task, advance=1, note=note, refresh=True)

    def decided(self, decision: Decision) -> None:
        self._end()
        super().decided(decision)

    def close(self) -> None:
        self._end()
        self._bars.stop()

    def _begin(self, description: str, total: int, completed: int = 0) -> None:
        self._end()
        self._task = self._bars.add_task(description, total=total, completed=completed, note="")

    def _end(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def make_progress(console: Console, *, silent: bool = False) -> Progress:
    """Live bars in a terminal, plain lines elsewhere."""
    if silent:
        return Progress()
    return RichProgress(console) if console.is_terminal else PlainProgress(console)


def _shares(shares: dict[str, float]) -> str:
    return " ".join(f"{name} {share:.3f}" for name, share in shares.items())


def _accuracies(right: dict[str, float]) -> str:
    shown = " ".join(f"{name} {100 * value:.1f} %" for name, value in right.items())
    return f", right answers {shown}" if shown else ""


def _losses(losses: dict[str, float]) -> str:
    mean = sum(losses.values()) / max(1, len(losses))
    return f"{mean:.4f} (" + " ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) + ")"


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


def prepared_table(config: RunConfig, prepared: Prepared) -> list[dict[str, Any]]:
    """Tokens, leaks and epochs of every domain at the first stage's mixture over all stages."""
    mixture = start_stage(config, 0, beginning(config), prepared).mixture
    total = sum(stage.steps for stage in config.stages) * config.train.batch_size * prepared.seq_len
    return [dict(row) for row in summary(prepared, mixture, total)]


def closing_words(result: Mapping[str, Any], report: str) -> str:
    """What `opmix run` says at the end: mixture, loss, cost, report."""
    first, last = result["evaluations"][0], result["evaluations"][-1]
    ledger = result["ledger"]
    main = ledger["main"]
    deciding = sum(ledger[purpose]["seconds"] for purpose in ("probes", "search", "fit"))
    shares = "  ".join(f"{name} {share:.3f}" for name, share in result["final_mixture"].items())
    changed = sum(1 for decision in result["decisions"] if decision["kept"] == "proposal")
    return "\n".join(
        [
            f"mixture   {shares}",
            f"decisions {len(result['decisions'])}, of which {changed} changed the mixture",
            f"objective {first['objective']:.4f} -> {last['objective']:.4f}"
            f"{_perplexity(first, last, result.get('objective', {}))}",
            *_accuracy(first, last),
            *([f"kept      {kept_words(result['kept'])}"] if result.get("kept") else []),
            *(f"harness   {task}: {cell(scores)}" for task, scores in result.get("harness", {}).items()),
            f"cost      {main['tokens']:,.0f} tokens trained in {main['seconds']:.0f} worker seconds; deciding took "
            f"{deciding:.0f} worker seconds and {100 * ledger['overhead']:.1f} % of the training FLOPs",
            f"report    {report}",
        ]
    )


def _perplexity(first: Mapping[str, Any], last: Mapping[str, Any], objective: Mapping[str, float]) -> str:
    """The targets' perplexity and its change, as the report has them."""
    before, after = (perplexity_of(row, objective) for row in (first, last))
    if math.isnan(before):
        return ""
    return f" nats per token, perplexity {before:.1f} -> {after:.1f} ({100 * (after / before - 1):+.1f} %)"


def _accuracy(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    sets = last.get("accuracy") or {}
    if not sets:
        return []
    shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in sets.items())
    return [
        f"accuracy  {100 * first['mean_accuracy']:.1f} % -> {100 * last['mean_accuracy']:.1f} % ({shown})"
    ]


def front_table(points: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for every point of a front: the sets' predicted losses, then the shares."""
    return [
        {f"{name}, nats": f"{loss:.4f}" for name, loss in point["losses"].items()}
        | {name: f"{share:.3f}" for name, share in point["mixture"].items()}
        for point in points
    ]
