"""The figures of one decision: candidates, proposal, gains, law, probes; and its mixtures side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import paragraph, table
from opmix_ray.draw.panel import COLOURS, Dots, Line, Mark, Panel, Rule, Whiskers
from opmix_ray.draw.svg import figure
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import (
    IN_FORCE,
    LEVEL,
    PROPORTIONAL,
    TAKEN,
    UNIFORM,
    UNKNOWN,
    Difference,
    LawCheck,
    Outlook,
    difference,
    outlooks,
    same,
)
from opmix_ray.report.run_panels import MOST_SETS, NATS
from opmix_ray.trials.space import OLD


def decision_panels(
    files: DecisionFiles, objective: Objective | Mapping[str, float], check: LawCheck | None
) -> list[Panel]:
    """Every figure of a decision that there is something for."""
    found = [candidates(files, objective), set_gains(files, objective), front(files), probes(files)]
    found += law_panels(files, check)
    return [panel for panel in found if panel is not None]


def against_old(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> list[Difference]:
    """Gain of every candidate over the first one, the mixture in force."""
    return [_gain(files, row, objective) if row.status == "ok" else UNKNOWN for row in files.rows]


def candidates(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> Panel | None:
    """Objective of every candidate in the order they were tried, the best so far, and the proposal's check."""
    if not files.rows:
        return None
    x = [float(i) for i in range(len(files.rows))]
    values = [row.objective for row in files.rows]
    whole = [v if row.status == "ok" else math.nan for v, row in zip(values, files.rows, strict=True)]
    best, so_far = [], math.inf
    for value in whole:
        so_far = min(so_far, value) if math.isfinite(value) else so_far
        best.append(so_far)
    found = against_old(files, objective)
    low = [v - (d.mean - d.low) for v, d in zip(values, found, strict=True)]
    high = [v + (d.high - d.mean) for v, d in zip(values, found, strict=True)]
    titles = [f"candidate {row.run}: {n.loss(row.objective)}" for row in files.rows]
    marks: list[Mark] = [Whiskers(x, low, high), Line(x, best, "ink", "best so far", steps=True)]
    marks.append(Dots(x, whole, "muted", "candidate", titles=titles))
    broken = [i for i, row in enumerate(files.rows) if row.status in ("nan", "failed")]
    if broken:
        top = max([value for value in [*values, *high] if math.isfinite(value)], default=1.0)
        texts = [f"candidate {files.rows[i].run}: {files.rows[i].status}" for i in broken]
        marks.append(
            Dots(
                [x[i] for i in broken],
                [top] * len(broken),
                "warn",
                "no finite loss",
                hollow=True,
                titles=texts,
            )
        )
    if math.isfinite(values[0]):
        marks += [Rule(values[0], "y"), Dots(x[:1], values[:1], 1, "mixture in force", titles=titles)]
    if files.checked is not None:
        row, at = files.checked, float(len(x))
        marks.append(Rule(at - 0.5))
        gain = proposal_gain(files, objective)
        marks.append(
            Whiskers(
                [at], [row.objective - (gain.mean - gain.low)], [row.objective + (gain.high - gain.mean)]
            )
        )
        marks.append(
            Dots([at], [row.objective], "accent", "proposal, simulated", titles=[n.loss(row.objective)])
        )
    return Panel(
        name="candidates",
        title="Candidates in the order they were tried",
        note=f"Whiskers: {LEVEL} interval of the paired difference to the mixture in force. Lower is better.",
        description="Objective of every candidate, the best so far, the mixture in force and the simulated proposal.",
        marks=marks,
        x_label="candidate",
        y_label=f"objective, {Objective.of(objective).unit}",
        x_range=(-0.5, len(x) + 0.5),
        x_scale="whole",
        wide=True,
    )


def front(files: DecisionFiles) -> Panel | None:
    """The front between two sets; between more, that between the two which differ most over it."""
    points = files.details.get("front")
    if not isinstance(points, list):
        return None
    losses = [n.numbers(point.get("losses")) for point in points if isinstance(point, dict)]
    names = list(losses[0]) if losses else []
    if len(losses) < 2 or len(names) < 2:
        return None

    def spread(name: str) -> float:
        values = [row.get(name, math.nan) for row in losses]
        return max(values) - min(values)

    across, up = sorted(sorted(names, key=spread)[-2:], key=names.index)
    pairs = sorted((row.get(across, math.nan), row.get(up, math.nan)) for row in losses)
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    line = [Line(x, y, "muted")] if len(names) == 2 else []
    others = (
        "" if len(names) == 2 else f" Of {n.plural(len(names), 'set')}, the two that differ most over it."
    )
    return Panel(
        name="front",
        title=f"The front between {across} and {up}",
        note=f"Each dot is what would be proposed with other weights of the sets.{others} Lower and left is better.",
        description=f"Predicted loss of {up} against {across}, for mixtures of which none is better on all sets.",
        marks=[*line, Dots(x, y, titles=[f"{across} {n.loss(a)}, {up} {n.loss(b)}" for a, b in pairs])],
        x_label=f"{across}, {NATS}",
        y_label=f"{up}, {NATS}",
    )


def set_gains(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> Panel | None:
    """By how much each set's loss falls under the simulated proposal, and the objective's."""
    if files.checked is None or not files.rows:
        return None
    names = ["objective", *files.sets]
    found = [proposal_gain(files, objective)]
    found += [_gain(files, files.checked, {name: 1.0}) for name in files.sets]
    places = [float(i) for i in range(len(names))]
    means = [d.mean for d in found]
    if not any(map(math.isfinite, means)):
        return None
    titles = [f"{name}: {interval(d)}" for name, d in zip(names, found, strict=True)]
    return Panel(
        name="gains-by-set",
        title="Gain of the simulated proposal by evaluation set",
        note=f"Right of 0: better than the mixture in force. Lines: {LEVEL} interval, paired over sequences; "
        f"that of the objective is the one the decision was judged by{_level(files)}.",
        description="Loss under the mixture in force minus loss under the simulated proposal, with intervals.",
        marks=[
            Rule(0.0),
            Whiskers(places, [d.low for d in found], [d.high for d in found], lying=True),
            Dots(means[:1], places[:1], "ink", titles=titles[:1]),
            Dots(means[1:], places[1:], "accent", titles=titles[1:]),
        ],
        categories=names,
        x_label=NATS,
    )


def probes(files: DecisionFiles) -> Panel | None:
    """Training loss of every probe, each on its own data."""
    entries = files.details.get("probes")
    entries = entries if isinstance(entries, dict) else {}
    many = len(entries) > COLOURS
    marks: list[Mark] = []
    for place, (name, probe) in enumerate(entries.items()):
        losses = probe.get("losses") if isinstance(probe, dict) else None
        values = [n.number(value) for value in losses] if isinstance(losses, list) else []
        steps = [float(i + 1) for i in range(len(values))]
        if not values:
            continue
        if many:  # more than can be told apart by colour
            mine = name == OLD
            marks.append(
                Line(steps, values, "accent" if mine else "muted", OLD if mine else "one domain each")
            )
        else:
            marks.append(Line(steps, values, place, str(name)))
    if not marks:
        return None
    marks.sort(key=lambda mark: isinstance(mark, Line) and mark.colour == "accent")  # drawn last, on top
    return Panel(
        name="probes",
        title="Probes while they train",
        note="Each on its own data, so levels differ; what counts is that they fall.",
        description="Training loss of every probe over its steps.",
        marks=marks,
        x_label="probe steps",
        y_label=NATS,
        x_scale="whole",
    )


def law_panels(files: DecisionFiles, check: LawCheck | None) -> list[Panel]:
    """Predicted against observed loss, one small panel per evaluation set."""
    if check is None:
        return []
    quality = files.decision.get("law")
    quality = quality if isinstance(quality, dict) else {}
    found = []
    shown = check.sets[:MOST_SETS]
    middle, half = _shared([[*check.observed[:, k], *check.predicted[:, k], *check.checked.get(name, ())]
                            for k, name in enumerate(shown)])  # fmt: skip
    for place, name in enumerate(shown):
        observed, predicted = check.observed[:, place], check.predicted[:, place]
        marks = _diagonal(observed.tolist(), check.checked.get(name))
        titles = [
            f"candidate {run}: observed {n.loss(o)}, law {n.loss(p)}"
            for run, o, p in zip(check.runs, observed, predicted, strict=True)
        ]
        marks.append(Dots(observed.tolist(), predicted.tolist(), "muted", "candidate", titles=titles))
        if name in check.checked:
            seen, said = check.checked[name]
            text = f"proposal, simulated: observed {n.loss(seen)}, law {n.loss(said)}"
            marks.append(Dots([seen], [said], "accent", "proposal, simulated", titles=[text]))
        score = n.numbers(quality.get(name))
        found.append(
            Panel(
                name=f"law-{place:02d}",
                title=name,
                note=f"R² {n.fixed(score.get('r2'), 2)} in sample, rank correlation "
                f"{n.fixed(score.get('spearman_cv'), 2)} out of fold",
                description=f"Loss of {name} as the law has it against loss measured, with the line of equality.",
                marks=marks,
                x_range=(middle[place] - half, middle[place] + half),
                y_range=(middle[place] - half, middle[place] + half),
                x_label=f"observed, {NATS}",
                y_label="law as fitted",
            )
        )
    return found


def _shared(values: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """The middle of several groups of values, and half of the widest one's extent with some room."""
    known = [[value for value in group if math.isfinite(value)] or [0.0] for group in values]
    middles = [(min(group) + max(group)) / 2 for group in known]
    half = max((max(group) - min(group) for group in known), default=0.0) / 2
    least = 1e-9 * max((abs(middle) for middle in middles), default=1.0)
    return middles, 1.08 * half if half > least else max(1e-3, 10 * least)


def deciding_gain(files: DecisionFiles) -> Difference:
    """The gain in objective that the decision was judged by."""
    gain = n.numbers(files.decision.get("gain"))
    return Difference(*(gain.get(key, math.nan) for key in ("mean", "low", "high")))


def proposal_gain(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> Difference:
    """How much the simulated proposal lowers the objective: as the decision recorded it, else measured here."""
    judged = deciding_gain(files)
    return judged if math.isfinite(judged.mean) else set_gain(files, objective)


def set_gain(files: DecisionFiles, weights: Objective | Mapping[str, float]) -> Difference:
    """Gain of the simulated proposal over the mixture in force, for some weights of the sets."""
    return UNKNOWN if files.checked is None else _gain(files, files.checked, weights)


def interval(found: Difference) -> str:
    """`+0.0093 (+0.0021 to +0.0179)`."""
    if not math.isfinite(found.mean):
        return n.NOTHING
    if not math.isfinite(found.low):
        return n.loss(found.mean, sign=True)
    return (
        f"{n.loss(found.mean, sign=True)} ({n.loss(found.low, sign=True)} to {n.loss(found.high, sign=True)})"
    )


def _gain(files: DecisionFiles, row: object, weights: Objective | Mapping[str, float]) -> Difference:
    try:
        return difference(files.rows[0], row, weights) if files.rows else UNKNOWN  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):
        return UNKNOWN


def _diagonal(observed: Sequence[float], other: tuple[float, float] | None) -> list[Mark]:
    values = np.array([*observed, *(other[:1] if other else [])])
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return []
    ends = [float(values.min()), float(values.max())]
    return [Line(ends, ends, "ink", dashed=True)]


def _level(files: DecisionFiles) -> str:
    level = n.numbers(files.decision.get("gain")).get("confidence", math.nan)
    return f" ({100 * level:g}{n.NBSP}%)" if math.isfinite(level) else ""


NOW = "in force"


def of_decision(files: DecisionFiles, tokens: dict[str, float]) -> str:
    """What a decision had to choose from."""
    return _shown(_joined(outlooks(files, tokens)), files.domains, files.decision.get("step"))


def of_run(run: RunFiles) -> str:
    """Of the last decision; of the mixture in force where there is none."""
    made = [files for files in run.decisions if files.decision]
    if made and (found := outlooks(made[-1], run.tokens)):
        return _shown(_joined(found), made[-1].domains, made[-1].decision.get("step"))
    if not run.history:
        return paragraph("No mixture has been set yet.")
    current = n.numbers(run.history[-1].get("mixture"))
    mixtures = {NOW: current, UNIFORM: dict.fromkeys(current, 1 / len(current))}
    total = sum(run.tokens.get(name, math.nan) for name in current)
    if total > 0:
        mixtures[PROPORTIONAL] = {name: run.tokens[name] / total for name in current}
    found = [Outlook(name, shares, math.nan, UNKNOWN) for name, shares in mixtures.items()]
    note = "There is no proposal, and no law to say what each would end at: nothing is decided yet."
    return _shown(_joined(found), list(current), None) + paragraph(note, kind="soft")


def mixtures(files: DecisionFiles, tokens: dict[str, float]) -> Panel | None:
    """Its mixtures side by side."""
    found = _joined(outlooks(files, tokens))
    return _panel(found, files.domains) if found else None


def _joined(found: Sequence[Outlook]) -> list[Outlook]:
    """One row for mixtures that are the same, under all their names."""
    rows: list[Outlook] = []
    for outlook in found:
        twin = next((row for row in rows if same(row.shares, outlook.shares)), None)
        if twin is None:
            rows.append(outlook)
        else:
            joined = Outlook(f"{twin.name} = {outlook.name}", twin.shares, twin.expected, twin.gain)
            rows[rows.index(twin)] = joined
    return rows


def _shown(found: Sequence[Outlook], domains: Sequence[str], step: object) -> str:
    if not found:
        return ""
    rows = [
        [
            outlook.name,
            n.loss(outlook.expected),
            _below(outlook),
            *(n.share(outlook.shares.get(name, 0.0)) for name in domains),
        ]
        for outlook in found
    ]
    at = f", as expected at step {n.count(step)}" if step is not None else ""
    drawn = table(
        ["mixture", "objective at the end", "below uniform (95 % interval)", *domains],
        rows,
        caption=f"Objective at the end of the stage{at}, and share of training tokens by domain",
        marked=["best" if TAKEN in outlook.name or outlook.name == NOW else "" for outlook in found],
    )
    return figure(_panel(found, domains)) + drawn


def _below(outlook: Outlook) -> str:
    if math.isnan(outlook.gain.mean):
        return ""
    return "0 (uniform)" if UNIFORM in outlook.name else interval(outlook.gain)


def _panel(found: Sequence[Outlook], domains: Sequence[str]) -> Panel:
    marks: list[Mark] = []
    at = [float(i) for i in range(len(domains))]
    for place, outlook in enumerate(found):
        main = TAKEN in outlook.name or outlook.name == NOW
        shares = [outlook.shares.get(name, 0.0) for name in domains]
        titles = [
            f"{name}, {outlook.name}: {n.share(share)}" for name, share in zip(domains, shares, strict=True)
        ]
        kind = IN_FORCE in outlook.name and not main
        marks.append(
            Dots(shares, at, "accent" if main else place + 1, outlook.name, hollow=kind, titles=titles)
        )
    marks.sort(key=lambda mark: isinstance(mark, Dots) and mark.colour == "accent")  # drawn last, on top
    most = max(
        (share for outlook in found for share in outlook.shares.values() if math.isfinite(share)), default=1.0
    )
    return Panel(
        name="mixtures",
        title="Share of training tokens by domain",
        description="Share of training tokens by domain under each of the mixtures.",
        marks=marks,
        categories=list(domains),
        x_label="share of training tokens",
        x_range=(0.0, max(most, 1e-3) * 1.02),
        x_scale="percent",
        wide=True,
    )
