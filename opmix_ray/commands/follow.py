"""Where a run stands: `opmix status`; and shown again and again until it ends: `opmix watch`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from opmix_ray.config import RunConfig
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError
from opmix_ray.harmless import plain
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.lock import is_held
from opmix_ray.output.result import kept_steps, kept_words
from opmix_ray.output.state import RESULT, STATE, load_state, read_config, read_rows
from opmix_ray.runner.plan import current, next_words, plan, resumes_at
from opmix_ray.storage import Storage, read_record
from opmix_ray.trials.rows import TRIALS

WIDTH = 30  # of a bar
BEFORE_LOCK = (
    20.0  # seconds that a run may need from its first file to its lock file, and between two of its parts
)


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands at a moment.

    Args:
        doing: in words.
        ended: `finished`; `stopped`: not finished, and nobody is working on it; empty while it goes on.
        loss, tokens_per_second: of the last training row.
        losses: of the last evaluation by set, nats per token; `first` of the first.
        decisions: of each, step, what was kept, and why.
        overhead: FLOPs of deciding over those of training.
        kept: step of each stage's weights, with `train.keep: best`.
    """

    name: str
    step: int
    steps: int
    doing: str
    ended: str
    loss: float | None
    tokens_per_second: float | None
    losses: dict[str, float]
    first: dict[str, float]
    mixture: dict[str, float]
    decisions: list[dict[str, Any]]
    overhead: float
    kept: dict[str, int] = field(default_factory=dict)


class Follower:
    """Reads one run's files.

    Args:
        directory: its output, local or a URI.

    Raises:
        UserError: there is no run.
    """

    def __init__(self, directory: str) -> None:
        self._storage = Storage(directory)
        if not self._storage.exists(STATE):
            raise UserError(
                "is not the output of a run", file=directory, remedy="name a run's output directory"
            )
        self._config: RunConfig = read_config(self._storage)
        self._decided: dict[str, dict[str, Any]] = {}

    def snapshot(self) -> Snapshot:
        """Where the run stands now."""
        storage, config = self._storage, self._config
        state = load_state(storage)
        rows = read_rows(storage)
        trained = [row for row in rows if row["kind"] == "train"]
        measured = [row for row in rows if row["kind"] == "evaluation"]
        last = trained[-1] if trained else None
        held = is_held(storage)
        return Snapshot(
            name=config.name,
            step=max([state.step, *(row["step"] for row in rows)]),
            steps=sum(stage.steps for stage in config.stages),
            doing=self._doing(state.done),
            ended="finished" if state.finished else "stopped" if held is False else "",
            loss=last["loss"] if last else None,
            tokens_per_second=last["tokens_per_second"] if last else None,
            losses=measured[-1]["losses"] if measured else {},
            first=measured[0]["losses"] if measured else {},
            mixture=state.mixture,
            decisions=self._decisions(),
            overhead=Ledger(state.ledger).overhead(),
            kept=kept_steps(measured),
        )

    def _doing(self, done: int) -> str:
        steps = plan(self._config)
        if done >= len(steps):
            return "writing model, result and report"
        step = steps[done]
        if step.index < 0:
            return f"stage {self._config.stages[step.stage].name}, steps {step.start} to {step.end}"
        place = f"decisions/{step.index:03d}"
        scored = len(self._storage.lines(f"{place}/trials.jsonl"))
        if scored:
            return f"decision {step.index}: {scored} candidates scored"
        return f"decision {step.index}: {len(self._storage.names(f'{place}/probes'))} probes trained"

    def _decisions(self) -> list[dict[str, Any]]:
        for name in self._storage.names("decisions"):
            place = f"decisions/{name}/decision.json"
            if name not in self._decided and self._storage.exists(place):
                found = read_record(self._storage, place, Decision)
                self._decided[name] = {
                    key: getattr(found, key) for key in ("index", "step", "kept", "reason")
                }
        return [self._decided[name] for name in sorted(self._decided)]


def follow(directory: str, interval: float, console: Console, *, as_json: bool = False) -> str:
    """Show a run until it ends.

    Args:
        directory: its output, local or a URI.
        interval: seconds between two looks.
        console: where to; a terminal gets a page that is kept up to date, anything else a line for each change.
        as_json: a JSON object for each change instead.

    Returns:
        How the run ended: `finished` or `stopped`.

    Raises:
        UserError: there is no run.
    """
    follower = Follower(directory)
    if console.is_terminal and not as_json:
        with Live(console=console, refresh_per_second=4) as live:
            return _until_end(follower, interval, lambda shot: live.update(page(shot)))
    if as_json:
        return _until_end(follower, interval, lambda shot: print(json.dumps(plain(asdict(shot))), flush=True))
    return _until_end(
        follower,
        interval,
        lambda shot: console.print(line(shot), highlight=False, markup=False, soft_wrap=True),
    )


def _until_end(follower: Follower, interval: float, show: Callable[[Snapshot], None]) -> str:
    before, alive = None, time.monotonic()
    while True:
        shot = follower.snapshot()
        if shot.ended == "stopped" and time.monotonic() - alive < min(BEFORE_LOCK, 3 * interval):
            shot = Snapshot(**{**asdict(shot), "ended": ""})  # it may just be starting
        elif shot.ended != "stopped":
            alive = time.monotonic()
        if shot != before:
            show(shot)
        if shot.ended:
            return shot.ended
        before = shot
        time.sleep(interval)


def line(shot: Snapshot) -> str:
    """One line about where a run stands."""
    parts = [f"step {shot.step} of {shot.steps}", shot.ended or shot.doing]
    if shot.loss is not None:
        parts.append(f"loss {shot.loss:.4f}, {shot.tokens_per_second:,.0f} tokens/s")
    if shot.losses:
        parts.append(f"held-out loss {_mean(shot.losses):.4f}")
    return "; ".join(parts)


def page(shot: Snapshot) -> RenderableType:
    """Everything about where a run stands."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(shot.name, style="bold"),
        ProgressBar(total=max(1, shot.steps), completed=shot.step, width=WIDTH),
        f"{shot.step:,} of {shot.steps:,} steps",
        shot.ended or shot.doing,
    )
    parts: list[RenderableType] = [head]
    if shot.loss is not None:
        parts.append(
            Text(f"training loss {shot.loss:.4f} nats per token, {shot.tokens_per_second:,.0f} tokens/s")
        )
    names = list(dict.fromkeys([*shot.mixture, *shot.losses]))
    if names:
        table = Table(box=None, pad_edge=False)
        for column in ("domain", "share", "", "held-out loss", "since the start"):
            table.add_column(column, justify="left" if column in ("domain", "") else "right")
        for name in names:
            share, loss = shot.mixture.get(name), shot.losses.get(name)
            table.add_row(
                name,
                "-" if share is None else f"{share:.3f}",
                "" if share is None else ProgressBar(total=1.0, completed=share, width=WIDTH // 2),
                "-" if loss is None else f"{loss:.4f}",
                f"{loss - shot.first[name]:+.4f}" if loss is not None and name in shot.first else "-",
            )
        parts.append(table)
    for decision in shot.decisions:
        kept = "new mixture" if decision["kept"] == "proposal" else "old mixture kept"
        parts.append(
            Text(
                f"decision {decision['index']} at step {decision['step']}: {kept}, because {decision['reason']}"
            )
        )
    if shot.overhead:
        parts.append(Text(f"deciding took {100 * shot.overhead:.1f} % of the training FLOPs", style="dim"))
    return Group(*parts)


def _mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def run_status(directory: str) -> dict[str, Any]:
    """Where a run stands, what it spent, and its next step.

    Raises:
        UserError: the directory is not a run's, or a file in it is damaged.
    """
    shot = Follower(directory).snapshot()
    storage = Storage(directory)
    state, config = load_state(storage), read_config(storage)
    ledger = Ledger(state.ledger)
    step = current(config, state)
    found: dict[str, Any] = {
        "output": storage.uri,
        "name": config.name,
        "finished": state.finished,
        "running": False if state.finished else is_held(storage),
        "step": state.step,
        "last_step": shot.step,
        "resumes_at": resumes_at(config, storage, state),
        "steps": shot.steps,
        "stage": state.stage,
        "mixture": state.mixture,
        "loss": shot.losses,
        "kept": shot.kept,
        "next": next_words(config, storage, state),
        "ledger": {**ledger.to_dict(), "overhead": ledger.overhead()},
    }
    if step is not None and step.index >= 0:
        found["trials"] = len(storage.lines(f"decisions/{step.index:03d}/{TRIALS}"))
    if storage.exists(RESULT):
        evaluations = read_record(storage, RESULT, dict[str, Any]).get("evaluations")
        if isinstance(evaluations, list) and evaluations and isinstance(evaluations[-1], dict):
            found["objective"] = evaluations[-1].get("objective")
    found["decisions"] = shot.decisions
    return found | _times(shot, found)


def _times(shot: Snapshot, found: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of training that are left at the last row's speed, for a run that goes on."""
    main = found["ledger"]["main"]
    if shot.ended or not shot.tokens_per_second or not found["step"] or not main["tokens"]:
        return {}
    return {
        "seconds_left": (shot.steps - shot.step) * main["tokens"] / found["step"] / shot.tokens_per_second
    }


def status_words(found: Mapping[str, Any]) -> str:
    """A status as a person reads it."""
    steps, last = found["steps"], found["last_step"]
    unfinished = {True: "running", False: "stopped", None: "not finished"}
    standing = "finished" if found["finished"] else unfinished[found["running"]]
    where = f"at step {last:,} of {steps:,} ({100 * last / max(1, steps):.0f} %)"
    stage = f", stage {found['stage']}" if found["stage"] else ""
    lines = [f"{found['name']:<9} {standing} {where}{stage}"]
    if found["mixture"]:
        lines.append(
            "mixture   " + "  ".join(f"{name} {share:.3f}" for name, share in found["mixture"].items())
        )
    if found["loss"]:
        mean = sum(found["loss"].values()) / len(found["loss"])
        sets = "  ".join(f"{name} {loss:.3f}" for name, loss in found["loss"].items())
        lines.append(f"held out  {mean:.4f} nats per token ({sets})")
    if found["kept"]:
        lines.append(f"kept      {kept_words(found['kept'])}")
    for decision in found["decisions"]:
        kept = "new mixture" if decision["kept"] == "proposal" else "old mixture kept"
        lines.append(
            f"decision  {decision['index']} at step {decision['step']}: {kept}, because {decision['reason']}"
        )
    lines += _spent(found["ledger"])
    if "seconds_left" in found:
        lines.append(f"left      about {duration(found['seconds_left'])} of training")
    if found["next"]:
        lines.append(f"{'now' if found['running'] else 'next':<10}{found['next']}")
    if standing in ("stopped", "not finished"):
        repeated = last - found["resumes_at"]
        again = f", {repeated} steps are trained again" if repeated > 0 else ""
        place = f"(from step {found['resumes_at']}{again})"
        lines.append(f"go on     opmix run FILE --output {found['output']} --resume {place}")
    if found["finished"]:
        lines.append(f"report    {Storage(found['output']).path('report.html')}")
    return "\n".join(lines)


def _spent(ledger: Mapping[str, Any]) -> list[str]:
    """Lines about what was spent on training, and on deciding; nothing where nothing was."""
    main = ledger["main"]
    if not main["tokens"]:
        return []
    tokens, flops, seconds = (
        f"{main['tokens']:,.0f}",
        scaled(main["flops"], "FLOPs"),
        duration(main["seconds"]),
    )
    lines = [f"trained   {tokens} tokens, {flops}, {seconds} of workers"]
    deciding = {unit: sum(ledger[purpose][unit] for purpose in ("probes", "search", "fit")) for unit in main}
    if deciding["seconds"]:
        lines.append(
            f"deciding  {scaled(deciding['flops'], 'FLOPs')} ({100 * ledger['overhead']:.1f} % of training), "
            f"{duration(deciding['seconds'])} of workers"
        )
    written = sum(entry["bytes"] for entry in ledger.values() if isinstance(entry, Mapping))
    return [*lines, f"written   {scaled(written, 'B')}"] if written else lines


def cost_words(cost: Mapping[str, Any], price: float | None) -> str:
    """What a run will cost, as a person reads it.

    Args:
        cost: see `runner.forecast.estimate`; with a price also `price`.
        price: of an hour.
    """
    flops, written = cost["flops"], cost["bytes"]
    often = "once" if cost["decisions"] == 1 else f"{cost['decisions']} times"
    spent = f"{scaled(flops['deciding'], 'FLOPs')}, {100 * cost['deciding']:.1f} % of training"
    if not cost["decisions"]:
        spent = "never"
    elif not flops["deciding"]:
        spent = f"{often}, by counting words, which takes no FLOPs"
    lines = [
        f"training  {cost['steps']:,} steps, {cost['tokens']:,} tokens, {scaled(flops['training'], 'FLOPs')}",
        f"deciding  {spent}",
        f"disk      {scaled(written['data'], 'B')} of tokens, {scaled(written['checkpoint'], 'B')} a checkpoint, "
        f"{scaled(written['model'], 'B')} the model",
    ]
    seconds = cost["seconds"]
    if seconds is None:
        return "\n".join([*lines, f"time      not known: {cost['untimed']}"])
    parts = ", ".join(
        f"{name} {duration(value)}" for name, value in seconds.items() if name != "total" and value >= 0.5
    )
    lines.append(
        f"time      about {duration(seconds['total'])} ({parts}), at {cost['tokens_per_second']:,.0f} tokens/s"
    )
    if price is not None:
        lines.append(f"money     about {cost['price']:,.2f}, at {price:g} an hour")
    return "\n".join(lines)


def scaled(value: float, unit: str) -> str:
    """A quantity with a prefix: `scaled(3.2e12, "FLOPs")` is `3.20 TFLOPs`."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}"


def duration(seconds: float) -> str:
    """Seconds as one would say them: `42 s`, `7 min`, `3 h 20 min`, `2 d 4 h`."""
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
