"""What on the page is not to be trusted, in red at its top: each line names the decision, the number and the remedy.

One doubt is what the sampler delivered of every domain, against what the mixtures asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from opmix_ray.decision.health import LEAST_R2
from opmix_ray.draw import numbers as n
from opmix_ray.draw.numbers import number, numbers
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import IN_FORCE, gain_over

WEAK = 0.5  # rank correlation out of fold below which a law hardly ranks
FAR = 0.01  # of a share, between what was planned and what was delivered


def doubts(run: RunFiles) -> list[str]:
    """In the order of the decisions, then of the run; nothing where nothing is known to be wrong."""
    found = [line for files in run.decisions if files.decision for line in decision_doubts(files)]
    return [*found, *_run_doubts(run)]


def decision_doubts(files: DecisionFiles) -> list[str]:
    """Of one decision."""
    name = f"Decision {files.decision.get('index', files.name)}"
    return [
        f"{name}: {line}." for line in (*_law(files), *_health(files), *_candidates(files), *_gain(files))
    ]


def _law(files: DecisionFiles) -> Iterator[str]:
    quality = files.decision.get("law")
    score = n.numbers(quality.get("objective")) if isinstance(quality, dict) else {}
    rank, r2, rows = (score.get(key, math.nan) for key in ("spearman_cv", "r2_cv", "rows"))
    counted = isinstance(files.details.get("choice"), dict)
    rests = "; it rests on counting words alone" if counted else ""
    if r2 < LEAST_R2:
        yield (
            f"candidates that the law has not seen are not predicted (R² out of fold {n.fixed(r2, 2)} for the "
            f"objective){rests}: more candidates (`search.trials`) or held-out sequences (`search.sequences`) "
            "would help"
        )
    elif rank < WEAK:
        yield f"the law hardly ranks candidates that it has not seen (rank correlation {n.fixed(rank, 2)}){rests}"
    if rows <= len(files.domains) + 1 and not counted:
        yield f"{n.count(rows)} candidates are so few that the law can pass through every one of them"
    if counted and not files.rows:
        yield (
            "no pass of the model confirms it, the mixture comes from counting words alone: more steps or a larger "
            "`search.budget` would pay for probes"
        )


def _health(files: DecisionFiles) -> Iterator[str]:
    health = files.details.get("health")
    checks = health.get("checks") if isinstance(health, dict) else None
    for check in checks if isinstance(checks, list) else []:
        if isinstance(check, dict) and check.get("passed") is False and check.get("name") != "law":
            yield f"{check.get('words', '')}; {check.get('remedy', '')} would help"
    lost = files.details.get("lost")
    if isinstance(lost, dict) and lost:
        yield f"the probes of {', '.join(map(str, lost))} failed, so their shares stay as they were"


def _candidates(files: DecisionFiles) -> Iterator[str]:
    broken = sum(row.status in ("nan", "failed") for row in files.rows)
    if broken:
        yield f"{broken} of {n.plural(len(files.rows), 'candidate')} gave no finite loss"


def _gain(files: DecisionFiles) -> Iterator[str]:
    gain = gain_over(files, IN_FORCE)
    if files.decision.get("kept") == "proposal" and gain.low <= 0 < gain.mean:
        yield (
            f"the expected gain may be 0: {n.loss(gain.mean, sign=True)} nats per token, with an interval from "
            f"{n.loss(gain.low, sign=True)}"
        )


def _run_doubts(run: RunFiles) -> Iterator[str]:
    if run.searched:
        return
    budget = run.config.search.budget if run.config else None
    if budget is not None and run.overhead > budget * 1.05:
        yield f"Deciding cost {n.percent(run.overhead)} of the training compute, more than `search.budget` allows."
    for row in delivery(run):
        if row.epochs > MANY_EPOCHS:
            yield (
                f"{row.domain} was seen {n.fixed(row.epochs, 1)} times. Beyond about {MANY_EPOCHS:g} epochs, repeated "
                "data teaches less than new data: set `max_epochs`, or add data."
            )
        if abs(row.share - row.planned) > FAR:
            yield f"{row.domain} was planned at {n.share(row.planned)} and delivered at {n.share(row.share)}."


MANY_EPOCHS = 4.0  # repetition up to about here is as good as new data (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Delivered:
    """One domain.

    Args:
        domain: its name.
        planned: share of all tokens that the mixtures ask for, weighted by steps.
        share: share of all tokens that was delivered.
        tokens: delivered.
        epochs: how often the domain's training tokens were seen; NaN while that is unknown.
    """

    domain: str
    planned: float
    share: float
    tokens: float
    epochs: float


def delivery(run: RunFiles) -> list[Delivered]:
    """Planned and delivered shares up to the last step that metrics.jsonl knows of."""
    rows = [row for row in run.train if isinstance(row.get("delivered"), dict)]
    sequences = numbers(rows[-1]["delivered"]) if rows else {}
    for name, count in numbers(run.state.get("begun")).items():  # read by earlier runs
        if name in sequences:
            sequences[name] -= count
    end = number(rows[-1].get("step")) if rows else math.nan
    length = run.config.data.seq_len if run.config else math.nan
    entries = run.result.get("delivered")
    known = {name: numbers(values) for name, values in entries.items()} if isinstance(entries, dict) else {}
    if not sequences:
        sequences = {name: values.get("sequences", math.nan) for name, values in known.items()}
        end = float(run.step)
    total = sum(value for value in sequences.values() if math.isfinite(value))
    planned = _planned(run, end)
    return [
        Delivered(
            domain=name,
            planned=planned.get(name, math.nan),
            share=sequences.get(name, 0.0) / total if total else math.nan,
            tokens=known.get(name, {}).get(
                "tokens", sequences.get(name, 0.0) * length if total else math.nan
            ),
            epochs=known.get(name, {}).get("epochs", math.nan),
        )
        for name in run.domains
    ]


def _planned(run: RunFiles, end: float) -> dict[str, float]:
    """Mean of the mixtures, weighted by the steps they were in force, up to a step."""
    starts = [number(entry.get("step")) for entry in run.history]
    sums: dict[str, float] = {}
    total = 0.0
    for place, entry in enumerate(run.history):
        until = min(end, starts[place + 1]) if place + 1 < len(starts) else end
        steps = until - starts[place]
        if not steps > 0:
            continue
        total += steps
        for name, value in numbers(entry.get("mixture")).items():
            sums[name] = sums.get(name, 0.0) + steps * value
    return {name: sums.get(name, 0.0) / total for name in run.domains} if total else {}
