"""The part of the page about one decision: candidates, shares, losses, quality of the law, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import code_marks, esc, fold, items, paragraph, section, table
from opmix_ray.draw.svg import figure, grid
from opmix_ray.report import decision_panels as panels
from opmix_ray.report.decision_panels import of_decision
from opmix_ray.report.doubts import WEAK, decision_doubts
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.outlook import LEVEL, UNKNOWN, Difference, LawCheck, check_law
from opmix_ray.report.run_panels import MOST_SETS, PURPOSES
from opmix_ray.report.words import moved, outcome, why_not_best

GAIN = "gain (95 % interval)"


def candidate_table(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> str:
    """Every candidate with its status, objective, gain and mixture; the proposal's check in the last row."""
    if not files.rows:
        return paragraph("No candidate has been scored yet.")
    finite = [row.objective for row in files.rows if row.status == "ok" and math.isfinite(row.objective)]
    best = min(finite, default=math.nan)
    rows, marked = [], []
    for row, gain in zip(files.rows, panels.against_old(files, objective), strict=True):
        compared = "in force" if row is files.rows[0] else panels.interval(gain)
        rows.append([row.run, row.status, n.loss(row.objective), compared, *_mixture(files, row.ratios)])
        marked.append("bad" if row.status in ("nan", "failed") else "best" if row.objective == best else "")
    if files.checked is not None:
        row, gain = files.checked, panels.proposal_gain(files, objective)
        shares = _mixture(files, row.ratios)
        rows.append(
            ["proposal, simulated", row.status, n.loss(row.objective), panels.interval(gain), *shares]
        )
    drawn = table(
        ["candidate", "status", "objective", GAIN, *files.domains],
        rows,
        caption=f"Objective in {Objective.of(objective).unit}, paired gain over the mixture in force, simulated share "
        "by domain; the best one in bold",
        text_columns=2,
        marked=marked,
    )
    return fold(f"{n.plural(len(files.rows), 'candidate')} and their mixtures", drawn)


def share_table(files: DecisionFiles) -> str:
    """Shares in force, proposed, and simulated when the proposal was measured."""
    old, new = n.numbers(files.decision.get("current")), n.numbers(files.decision.get("proposal"))
    if not new:
        return ""
    simulated = n.numbers(files.details.get("simulated"))
    rows = []
    for name in files.domains:
        before, after = old.get(name, 0.0), new.get(name, 0.0)
        change = f"{n.fixed(100 * (after - before), 1, sign=True)} pp"
        rows.append([name, n.share(before), n.share(after), change, n.share(simulated.get(name))])
    drawn = table(
        ["domain", "in force until here", "proposed", "change", "simulated"],
        rows,
        caption="Share of training tokens; simulated: the nearest mixture that the probes add up to, the one measured",
    )
    return fold("Shares as numbers", drawn)


def loss_table(files: DecisionFiles, objective: Objective | Mapping[str, float]) -> str:
    """Losses of the two simulated models, the gain by set, and what the law says."""
    old, new = n.numbers(files.details.get("losses_old")), n.numbers(files.details.get("losses_proposal"))
    predicted = n.numbers(files.details.get("predicted"))
    if not (old or predicted):
        return ""
    aim, rows = Objective.of(objective), []
    weights = dict(zip(aim.sets, aim.weights.tolist(), strict=True))
    for name in files.sets or list(predicted):
        gain = panels.set_gain(files, {name: 1.0})
        if gain is UNKNOWN:
            gain = Difference(old.get(name, math.nan) - new.get(name, math.nan), math.nan, math.nan)
        losses = [n.loss(values.get(name)) for values in (old, new)]
        weight = n.percent(weights.get(name, 0.0))
        rows.append([name, *losses, panels.interval(gain), n.loss(predicted.get(name)), weight])
    whole = [n.loss(aim.at(losses)) for losses in (old, new, predicted)]
    rows.append(
        [
            "objective",
            *whole[:2],
            panels.interval(panels.proposal_gain(files, objective)),
            whole[2],
            n.percent(1.0),
        ]
    )
    drawn = table(
        ["held-out set", "in force, simulated", "proposal, simulated", GAIN, "law, trained", "weight"],
        rows,
        caption="Loss in nats per token on the search's held-out sequences; the law's column is its prediction for "
        "training on the proposal",
        marked=[""] * (len(rows) - 1) + ["best foot"],
    )
    return fold("Losses as numbers", drawn)


def limit_table(files: DecisionFiles) -> str:
    """What is expected of the sets with a limit, under the mixture that was taken."""
    limits = files.details.get("limits")
    if not isinstance(limits, dict) or not limits:
        return ""
    rows = []
    for name, one in limits.items():
        values = n.numbers(one)
        kept, binds = (one.get(key) is True if isinstance(one, dict) else False for key in ("kept", "binds"))
        state = "kept, and it binds" if binds else "kept"
        if not kept:
            instead = f"; kept with {n.percent(values['confidence'])}" if values.get("confidence") else ""
            state = f"cannot be kept with 95 % confidence{instead}"
        rows.append([name, *(n.loss(values.get(key)) for key in ("ceiling", "predicted", "at_95")), state])
    return table(
        ["set", "at most", "expected", "95 % below", "limit"],
        rows,
        caption="Limits on sets at the end of the stage, nats per token (of questions the rate of wrong answers)",
    )


def quality_table(quality: Mapping[str, object]) -> str:
    """Quality of the law by metric."""
    rows = []
    for name, values in quality.items():
        score = n.numbers(values)
        shown = [n.fixed(score.get(key), 3) for key in ("r2", "r2_cv", "spearman_cv")]
        rows.append([name, *shown, n.loss(score.get("rmse_cv")), n.count(score.get("rows"))])
    drawn = table(
        [
            "metric",
            "R² in sample",
            "R² out of fold",
            "rank correlation out of fold",
            "error out of fold",
            "rows",
        ],
        rows,
        caption="Quality of the law by cross-validation: Spearman's rank correlation; root mean square error, "
        "nats per token",
    )
    return fold("Quality as numbers", drawn)


def cost_table(files: DecisionFiles) -> str:
    """Cost of this decision by purpose."""
    cost = files.details.get("cost")
    if not isinstance(cost, dict) or not cost:
        return ""
    wall = n.numbers(files.details.get("wall_seconds"))
    rows = []
    for name, units in cost.items():
        spent = n.numbers(units)
        computed = [
            n.count(spent.get("tokens", 0.0)),
            n.power(spent.get("flops", 0.0)),
            n.seconds(spent.get("seconds")),
        ]
        rows.append(
            [PURPOSES.get(name, name), *computed, n.seconds(wall.get(name)), n.size(spent.get("bytes", 0.0))]
        )
    drawn = table(
        ["purpose", "tokens", "FLOPs", "computing time", "waiting time", "bytes"],
        rows,
        caption="Cost of this decision; computing time is summed over workers, waiting time is that of the clock",
    )
    return fold("Cost of this decision", drawn)


def _mixture(files: DecisionFiles, ratios: dict[str, float]) -> list[str]:
    return [n.share(ratios.get(name, 0.0)) for name in files.domains]


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
        candidate_table(files, objective),
        grid([panels.set_gains(files, objective), panels.front(files), panels.probes(files)]),
        share_table(files),
        loss_table(files, objective),
        limit_table(files),
        _binding(files),
        _health(files),
        _law(files, check_law(files), Objective.of(objective).unit),
        cost_table(files),
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
    content = text + drawn + more + absent + quality_table(quality)
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
