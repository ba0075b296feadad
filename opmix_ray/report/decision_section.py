"""The part of the page about one decision."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.draw.figure import figure, grid
from opmix_ray.draw.html import code_marks, esc, items, paragraph, section
from opmix_ray.report import decision_panels as panels
from opmix_ray.report import decision_tables as tables
from opmix_ray.report.doubts import WEAK, decision_doubts
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.law_check import LawCheck, check_law
from opmix_ray.report.paired import LEVEL
from opmix_ray.report.run_panels import MOST_SETS
from opmix_ray.report.side_by_side import of_decision
from opmix_ray.report.words import moved, outcome, why_not_best


def decision_section(
    files: DecisionFiles, objective: Objective | Mapping[str, float], tokens: dict[str, float]
) -> str:
    """Reason, doubts, mixtures side by side, candidates, gains, law and probes of one decision."""
    parts = [
        _verdict(files),
        _doubts(files),
        of_decision(files, tokens),
        _why(files, objective),
        figure(panels.candidates(files, objective)),
        tables.candidate_table(files, objective),
        grid([panels.set_gains(files, objective), panels.front(files), panels.probes(files)]),
        tables.share_table(files),
        tables.loss_table(files, objective),
        tables.limit_table(files),
        _binding(files),
        _health(files),
        _law(files, check_law(files), Objective.of(objective).unit),
        tables.cost_table(files),
    ]
    return section(files.title, "".join(parts), name=f"decision-{files.name}", level=3)


def _verdict(files: DecisionFiles) -> str:
    kind = "changed" if files.decision.get("kept") == "proposal" else "kept"
    mark = f'<p><span class="{kind}">{esc(outcome(files))}</span></p>'
    if not files.decision:
        return mark + paragraph("There is no decision.json yet; candidates so far:")
    reason = str(files.decision.get("reason") or "no reason is recorded")
    used = (
        f"{n.count(files.decision.get('usable'))} of {n.plural(len(files.rows), 'candidate')} could be used."
    )
    change = moved(n.numbers(files.decision.get("current")), n.numbers(files.decision.get("proposal")), 4)
    proposed = f" Proposed: {change}." if change else " The proposal is the mixture in force."
    return mark + f"<p>{code_marks(f'{reason[:1].upper()}{reason[1:]}. {used}{proposed}')}</p>"


def _doubts(files: DecisionFiles) -> str:
    lines = decision_doubts(files) if files.decision else []
    return f'<div class="bad" role="note"><b>Do not trust</b>{items(lines)}</div>' if lines else ""


def _why(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> str:
    text = "".join(paragraph(part) for part in why_not_best(files, objective))
    return section("The proposal and the best candidate", text, level=4) if text else ""


def _health(files: DecisionFiles) -> str:
    health = files.details.get("health")
    checks = health.get("checks") if isinstance(health, dict) else None
    if not isinstance(checks, list):
        return ""
    lines = []
    for check in (check for check in checks if isinstance(check, dict)):
        passed = check.get("passed")
        mark = "holds" if passed is True else "fails" if passed is False else "unknown"
        help_ = f"; {check.get('remedy')} would help" if passed is False else ""
        lines.append(f"{mark}: {check.get('words', '')}{help_}")
    return section("What was checked", items(lines), level=4)


def _binding(files: DecisionFiles) -> str:
    binding = files.details.get("binding")
    if not isinstance(binding, list) or not binding:
        return ""
    return section("What holds the proposal where it is", items(binding), level=4)


def _law(files: DecisionFiles, check: LawCheck | None, unit: str) -> str:
    if not files.decision.get("law_name"):
        return paragraph("No law was fitted.") if files.decision else ""
    quality = files.decision.get("law")
    quality = quality if isinstance(quality, dict) else {}
    judged = _judged(quality, len(files.domains))
    text = paragraph(f"Law: {files.decision['law_name']}.", judged, _promise(files, unit)) + paragraph(
        _reading(check)
    )
    hidden = len(check.sets) - MOST_SETS if check else 0
    more = paragraph(f"{n.plural(hidden, 'more set')} in the table.", kind="soft") if hidden > 0 else ""
    absent = (
        ""
        if check
        else paragraph(
            "law.json or the candidates are missing: the law is not drawn."
            if files.rows
            else "No candidate was scored, so there is nothing to hold the law against.",
            kind="soft",
        )
    )
    drawn = grid(panels.law_panels(files, check), legend=False)
    content = text + drawn + more + absent + tables.quality_table(quality)
    return section("Law against observation", content, level=4)


def _judged(quality: Mapping[str, object], domains: int) -> str:
    """What cross-validation says, and a warning where the law can pass through every candidate."""
    score = n.numbers(quality.get("objective"))
    value, rows = score.get("spearman_cv", math.nan), score.get("rows", math.nan)
    if not math.isfinite(value):
        return "Its quality could not be judged by cross-validation."
    text = f"Out of fold its rank correlation for the objective is {n.fixed(value, 2)}"
    text += (
        ": it hardly ranks candidates it has not seen, so the proposal stands on its own measured gain."
        if value < WEAK
        else " (1 is perfect, 0 is chance)."
    )
    if rows <= domains + 1:
        text += (
            f" With {n.plural(int(rows), 'candidate')} for {n.plural(domains, 'domain')} it can pass through "
            "every one of them: R² in sample says nothing here."
        )
    return text


def _promise(files: DecisionFiles, unit: str) -> str:
    """The gain that the law expects of training, and the one measured on simulated models."""
    expected = n.number(files.details.get("predicted_gain"))
    if not math.isfinite(expected):
        return ""
    text = f"It expects training on the proposal to lower the objective by {n.loss(expected)} {unit}"
    half = 1.96 * n.number(files.details.get("predicted_std"))
    if math.isfinite(half):
        ends = n.loss(expected - half, sign=True), n.loss(expected + half, sign=True)
        text += f" ({LEVEL} interval {ends[0]} to {ends[1]})"
    measured = panels.deciding_gain(files)
    if math.isfinite(measured.mean):
        text += f"; measured on simulated models, which know the probes' few steps only: {panels.interval(measured)}"
    return f"{text}."


def _reading(check: LawCheck | None) -> str:
    if check is None:
        return ""
    text = (
        "Below, each grey dot is a candidate: the loss measured, and the loss by the law as fitted. The blue one is "
        "the simulated proposal, which the fit has not seen; on the dashed line both losses are equal."
    )
    if check.eps is None:
        return text
    fitted, read = check.eps
    ratio = check.steeper or 1.0
    slopes = f", slopes {n.fixed(ratio, 1)} times as steep in the mean" if abs(ratio - 1) >= 0.05 else ""
    return (
        f"{text} For the proposal the law was read with the pseudo-count {n.power(read)} instead of the fitted "
        f"{n.power(fitted)}{slopes} and slopes drawn towards each other, as training wants it. Its predictions "
        "therefore differ from the losses of simulated candidates and are not drawn here."
    )
