"""`opmix status`: where a run stands, what it spent, what comes next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opmix_ray.commands.follow import Follower, Snapshot
from opmix_ray.output.ledger import Ledger
from opmix_ray.output.lock import is_held
from opmix_ray.output.result import kept_words
from opmix_ray.output.state import RESULT, load_state, read_config
from opmix_ray.record import read_record
from opmix_ray.runner.plan import current, next_words, resumes_at
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import TRIALS


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
        lost = last - found["resumes_at"]
        again = f", {lost} steps are trained again" if lost > 0 else ""
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
    lines = [
        f"training  {cost['steps']:,} steps, {cost['tokens']:,} tokens, {scaled(flops['training'], 'FLOPs')}",
        f"deciding  {scaled(flops['deciding'], 'FLOPs')}, {100 * cost['deciding']:.1f} % of training"
        + ("" if flops["deciding"] else " (no decision, or one that only counts words)"),
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
