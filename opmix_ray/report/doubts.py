"""What on the page is not to be trusted, in red at its top: each line names the decision, the number and the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from opmix_ray.decision.health import LEAST_R2
from opmix_ray.draw import numbers as n
from opmix_ray.report.delivery import MANY_EPOCHS, delivery
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
