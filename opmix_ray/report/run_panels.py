"""The figures of a run: mixtures, losses, the learning curve of every domain, what was delivered, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from opmix_ray.draw import numbers as n
from opmix_ray.draw.numbers import number
from opmix_ray.draw.panel import COLOURS, Dots, Line, Mark, Panel, Rects, Rule, Texts, Whiskers
from opmix_ray.output.result import DomainCurves
from opmix_ray.report.doubts import delivery
from opmix_ray.report.gather import RunFiles

MOST_SETS = 12  # small panels; the table has the other sets
STEPS = "optimiser steps"
NATS = "nats per token"
PURPOSES = {
    "main": "training",
    "answers": "answers of the student",
    "teacher": "teacher",
    "probes": "probes",
    "search": "candidates",
    "fit": "law and proposal",
    "evaluation": "evaluation",
    "idle": "waiting for decisions",
}


def run_panels(run: RunFiles) -> list[Panel]:
    """Every figure about the run as a whole that there is something for."""
    found = [mixture_over_time(run), objective_over_time(run), *set_losses(run), training_loss(run)]
    found += [gains(run), delivered(run), cost(run)]
    return [panel for panel in found if panel is not None]


def mixture_over_time(run: RunFiles) -> Panel | None:
    """Stacked shares over steps; the smallest domains of many share one band."""
    if not run.history:
        return None
    starts = [n.number(entry.get("step")) for entry in run.history]
    ends = [*starts[1:], float(max(run.step, starts[-1] + 1))]
    shares = [n.numbers(entry.get("mixture")) for entry in run.history]
    bands, rest = _bands(run.domains, shares)
    boxes: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in bands}
    titles: dict[str, list[str]] = {name: [] for name in bands}
    for start, end, mixture in zip(starts, ends, shares, strict=True):
        low = 0.0
        for name in bands:
            value = (
                sum(mixture.get(r, 0.0) for r in rest) if name not in run.domains else mixture.get(name, 0.0)
            )
            if not (math.isfinite(value) and value > 0 and end > start):
                continue
            boxes[name].append((start, end, low, low + value))
            titles[name].append(f"{name}: {n.share(value)}, steps {start:,.0f} to {end:,.0f}")
            low += value
    marks: list[Mark] = [
        Rects(boxes[name], "muted" if name not in run.domains else i, name, titles[name])
        for i, name in enumerate(bands)
    ]
    return Panel(
        name="mixture",
        title="Share of training tokens by domain",
        description="Share of training tokens by domain, stacked, from the first step to the last one made.",
        marks=[*marks, *_decision_rules(run)],
        x_label=STEPS,
        y_label="share of training tokens",
        x_range=(0.0, float(max(run.planned_steps, 1))),
        y_range=(0.0, 1.0),
        x_scale="whole",
        y_scale="percent",
        wide=True,
    )


def objective_over_time(run: RunFiles) -> Panel | None:
    """The weighted mean of the held-out losses."""
    if not run.evaluations:
        return None
    steps = [n.number(row.get("step")) for row in run.evaluations]
    values = [run.weighted(row) for row in run.evaluations]
    return _over_steps(
        run, "objective", "Objective", "Weighted mean of the held-out losses over steps.", steps, values
    )


def set_losses(run: RunFiles) -> list[Panel]:
    """Learning curves on the same axes, one small panel each: held-out loss by set, training loss by domain."""
    curves = domain_curves(run)
    steps = [n.number(row.get("step")) for row in run.evaluations]
    names = list(dict.fromkeys([*run.sets, *curves]))
    names = sorted(names, key=lambda name: not run.objective.get(name))[:MOST_SETS]  # targets first
    asked = {name for row in run.evaluations for name in n.numbers(row.get("accuracy"))}
    marks: dict[str, list[Mark]] = {}
    for name in names:
        values = [n.numbers(row.get("losses")).get(name, math.nan) for row in run.evaluations]
        marks[name] = [Line(*curves[name], "muted", "training")] if name in curves else []
        if name in run.sets:
            titles = [f"step {step:,.0f}: {n.loss(value)}" for step, value in zip(steps, values, strict=True)]
            marks[name] += [Line(steps, values, label="held out"), Dots(steps, values, titles=titles)]
    ranges = {
        kind: _range(marks[name] for name in names if (name in asked) == kind) for kind in (True, False)
    }
    return [
        Panel(
            name=f"loss-{place:02d}",
            title=name,
            note=_ends(run, name),
            description=f"Loss of {name} over steps: in training, and held out.",
            marks=[*marks[name], *_decision_rules(run)],
            x_label=STEPS,
            y_label="rate of wrong answers" if name in asked else NATS,
            x_range=(0.0, float(max(run.planned_steps, 1)) * 1.02),
            y_range=ranges[name in asked],
            x_scale="whole",
        )
        for place, name in enumerate(names)
    ]


def _range(groups: Iterable[list[Mark]]) -> tuple[float, float] | None:
    """Limits that hold all of several panels."""
    found = [Panel("", "", "", marks) for marks in groups]
    limits = [panel.limits()[1] for panel in found if not panel.empty()]
    return (min(low for low, _ in limits), max(high for _, high in limits)) if limits else None


def _ends(run: RunFiles, name: str) -> str:
    values = [n.numbers(row.get("losses")).get(name, math.nan) for row in run.evaluations]
    known = [value for value in values if math.isfinite(value)]
    return f"held out {n.loss(known[0])} → {n.loss(known[-1])}" if known else "not held out"


def training_loss(run: RunFiles) -> Panel | None:
    """Loss on the batches trained on: it follows the mixture and is no measure of progress across decisions."""
    if not run.train:
        return None
    steps = [n.number(row.get("step")) for row in run.train]
    values = [n.number(row.get("loss")) for row in run.train]
    return Panel(
        name="training-loss",
        title="Training loss",
        note="On the batches of the mixture in force: it jumps where the mixture changes.",
        description="Loss on training batches over steps.",
        marks=[Line(steps, values, "ink"), *_decision_rules(run)],
        x_label=STEPS,
        y_label=NATS,
        x_range=(0.0, float(max(run.planned_steps, 1)) * 1.02),
        x_scale="whole",
    )


def gains(run: RunFiles) -> Panel | None:
    """Measured gain of every decision's proposal, with its interval, against 0."""
    entries = [(d, n.numbers(d.decision.get("gain"))) for d in run.decisions if d.decision.get("gain")]
    if not entries:
        return None
    at = [float(i) for i in range(len(entries))]
    means = [gain.get("mean", math.nan) for _, gain in entries]
    taken = [d.decision.get("kept") == "proposal" for d, _ in entries]
    marks: list[Mark] = [Rule(0.0)]
    for wanted, colour, label in ((True, "accent", "proposal taken"), (False, "muted", "old mixture kept")):
        rows = [i for i, was in enumerate(taken) if was == wanted]
        if not rows:
            continue
        low = [entries[i][1].get("low", math.nan) for i in rows]
        high = [entries[i][1].get("high", math.nan) for i in rows]
        places = [at[i] for i in rows]
        titles = [f"{n.loss(means[i], sign=True)} ({n.loss(a, sign=True)} to {n.loss(b, sign=True)})"
                  for i, a, b in zip(rows, low, high, strict=True)]  # fmt: skip
        marks.append(Whiskers(places, low, high, colour, lying=True))  # type: ignore[arg-type]
        marks.append(Dots([means[i] for i in rows], places, colour, label, titles=titles))  # type: ignore[arg-type]
    return Panel(
        name="gains",
        title="Measured gain of each proposal",
        note="Right of 0: the simulated proposal has the lower objective.",
        description="Gain in objective by decision with its interval, against 0.",
        marks=marks,
        categories=[f"decision {d.decision.get('index', d.name)}" for d, _ in entries],
        x_label=NATS,
    )


def delivered(run: RunFiles) -> Panel | None:
    """Delivered against planned share of tokens, by domain."""
    rows = [row for row in delivery(run) if math.isfinite(row.planned) or math.isfinite(row.share)]
    if not rows or not any(math.isfinite(row.share) for row in rows):
        return None
    return paired_bars(
        "delivered",
        "Delivered against planned share",
        "Share of the training tokens by domain: planned by the mixtures, and delivered.",
        [row.domain for row in rows],
        ("planned", [row.planned for row in rows]),
        ("delivered", [row.share for row in rows]),
    )


def cost(run: RunFiles) -> Panel | None:
    """FLOPs of every purpose over those of training."""
    ledger = run.ledger
    training = run.training_flops
    if not training > 0:
        return None
    names = [name for name in ledger if name not in ("main", "idle")]  # waiting takes no FLOPs
    values = [ledger[name].get("flops", math.nan) / training for name in names]
    places = [float(i) for i in range(len(names))]
    texts = [n.percent(value) for value in values]
    return Panel(
        name="cost",
        title="FLOPs next to training",
        note="Training itself is 100 %.",
        description="FLOPs of probes, candidates, fit and evaluation in per cent of those of training.",
        marks=[
            Rects([(0, v, i - 0.3, i + 0.3) for i, v in zip(places, values, strict=True)], "accent"),
            Texts(values, places, texts),
        ],
        categories=[PURPOSES.get(name, name) for name in names],
        x_range=(0.0, max([v for v in values if math.isfinite(v)], default=1.0) or 1.0),
        x_scale="percent",
        x_label="share of training FLOPs",
    )


def paired_bars(
    name: str,
    title: str,
    description: str,
    categories: Sequence[str],
    before: tuple[str, Sequence[float]],
    after: tuple[str, Sequence[float]],
    note: str = "",
) -> Panel:
    """Two bars of shares per category, the first one muted; the second one's value is written out."""
    marks: list[Mark] = []
    for (label, values), offset, colour in ((before, -0.32, "muted"), (after, 0.02, "accent")):
        boxes = [(0.0, v, i + offset, i + offset + 0.3) for i, v in enumerate(values)]
        titles = [f"{c}, {label}: {n.share(v)}" for c, v in zip(categories, values, strict=True)]
        marks.append(Rects(boxes, colour, label, titles))  # type: ignore[arg-type]
    ends = [
        max((v for v in pair if math.isfinite(v)), default=math.nan)
        for pair in zip(before[1], after[1], strict=True)
    ]
    marks.append(
        Texts(
            ends,
            [float(i) for i in range(len(ends))],
            [_change(*pair) for pair in zip(before[1], after[1], strict=True)],
        )
    )
    return Panel(
        name=name,
        title=title,
        description=description,
        marks=marks,
        categories=categories,
        x_range=(0.0, max([v for v in ends if math.isfinite(v)], default=1.0) or 1.0),
        x_scale="percent",
        x_label="share of training tokens",
        note=note,
    )


def _change(old: float, new: float) -> str:
    """`33.7 → 0.1 %`."""
    first, second = n.share(old), n.share(new)
    return second if first == second else f"{first.removesuffix(f'{n.NBSP}%')} → {second}"


def _over_steps(
    run: RunFiles, name: str, title: str, text: str, steps: Sequence[float], values: Sequence[float]
) -> Panel:
    titles = [f"step {step:,.0f}: {n.loss(value)}" for step, value in zip(steps, values, strict=True)]
    known = [value for value in values if math.isfinite(value)]
    note = f"{n.loss(known[0])} → {n.loss(known[-1])}" if known else ""
    return Panel(
        name=name,
        title=title,
        note=note,
        description=text,
        marks=[Line(steps, values), Dots(steps, values, titles=titles), *_decision_rules(run)],
        x_label=STEPS,
        y_label=NATS,
        x_range=(0.0, float(max(run.planned_steps, 1)) * 1.02),
        x_scale="whole",
    )


def _decision_rules(run: RunFiles) -> list[Rule]:
    found = []
    for d in run.decisions:
        step = n.number(d.decision.get("step"))
        if math.isfinite(step):
            found.append(Rule(step, label=f"d{d.decision.get('index', '')}"))
    return found


def _bands(domains: Sequence[str], mixtures: Sequence[dict[str, float]]) -> tuple[list[str], list[str]]:
    """Names of the bands, and the domains that the last band stands for where there are more than colours."""
    if len(domains) <= COLOURS:
        return list(domains), []
    largest = {name: max((m.get(name, 0.0) for m in mixtures), default=0.0) for name in domains}
    ranked = sorted(domains, key=lambda name: -largest[name])
    shown, rest = set(ranked[: COLOURS - 1]), ranked[COLOURS - 1 :]
    return [*(name for name in domains if name in shown), f"{len(rest)} other domains"], rest


Curve = tuple[list[float], list[float]]  # steps, nats per token


def domain_curves(run: RunFiles) -> dict[str, Curve]:
    """By domain: blocks of steps as state.json keeps them, and rows of metrics.jsonl before and after these."""
    kept = _kept(run)
    first, last = (math.inf, math.inf) if kept is None else (float(kept.start), float(kept.steps[-1]))
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in run.domains}

    def add(step: float, name: object, nats: float, tokens: float) -> None:
        if tokens > 0 and math.isfinite(nats) and math.isfinite(step):
            points.setdefault(str(name), []).append((step, nats / tokens))

    for row in run.train:
        step, sums = number(row.get("step")), row.get("domains")
        if (step <= first or step > last) and isinstance(sums, dict):
            for name, pair in sums.items():
                if isinstance(pair, list) and len(pair) == 2:
                    add(step, name, number(pair[0]), number(pair[1]))
    if kept is not None:
        for block, step in enumerate(kept.steps.tolist()):
            for place, name in enumerate(kept.domains):
                add(float(step), name, float(kept.nats[block, place]), float(kept.tokens[block, place]))
    return {
        name: ([step for step, _ in sorted(found)], [loss for _, loss in sorted(found)])
        for name, found in points.items()
        if found
    }


def _kept(run: RunFiles) -> DomainCurves | None:
    """The blocks since the weights in force were begun with; None where there are none, or they are damaged."""
    values = run.state.get("curves")
    if not isinstance(values, dict) or not values:
        return None
    try:
        found = DomainCurves.from_dict(values)
        whole = len(found.steps) and np.isfinite(found.nats).all() and (found.tokens >= 0).all()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return found if whole else None
