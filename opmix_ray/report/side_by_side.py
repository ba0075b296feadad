"""Mixtures side by side: in force, proposed, uniform and proportional, each with what it is expected to end at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opmix_ray.draw import numbers as n
from opmix_ray.draw.figure import figure
from opmix_ray.draw.html import paragraph, table
from opmix_ray.draw.panel import Dots, Mark, Panel
from opmix_ray.report.decision_panels import interval
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import IN_FORCE, PROPORTIONAL, TAKEN, UNIFORM, Outlook, outlooks, same
from opmix_ray.report.paired import UNKNOWN

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


def panel(files: DecisionFiles, tokens: dict[str, float]) -> Panel | None:
    """The figure alone."""
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
            ""
            if math.isnan(outlook.gain.mean)
            else "0 (uniform)"
            if UNIFORM in outlook.name
            else interval(outlook.gain),
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
