"""The part of the page about one decision."""

from __future__ import annotations

import math

from opmix_ray.report import decision_panels as panels
from opmix_ray.report import numbers as n
from opmix_ray.report.figure import figure, grid
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.html import code_marks, esc, fold, items, paragraph, section, table
from opmix_ray.report.law_check import LawCheck, check_law
from opmix_ray.report.words import moved, verdict


def decision_section(files: DecisionFiles, objective: dict[str, float]) -> str:
    """Reason, candidates, proposal, gains, law and probes of one decision."""
    check = check_law(files)
    parts = [_verdict(files), figure(panels.candidates(files, objective)), _candidate_table(files, objective)]
    parts.append(grid([panels.proposal(files), panels.set_gains(files, objective), panels.probes(files)]))
    parts += [_shares(files), _binding(files), _losses(files, objective), _law(files, check), _cost(files)]
    return section(files.title, "".join(parts), name=f"decision-{files.name}", level=3)


def _verdict(files: DecisionFiles) -> str:
    kind = "changed" if files.decision.get("kept") == "proposal" else "kept"
    mark = f'<p><span class="{kind}">{esc(verdict(files))}</span></p>'
    if not files.decision:
        return mark + paragraph("There is no decision.json yet; candidates so far:")
    reason = str(files.decision.get("reason") or "no reason is recorded")
    used = f"{n.count(files.decision.get('usable'))} of {n.plural(int(len(files.rows)), 'candidate')} could be used."
    text = f"{reason[:1].upper()}{reason[1:]}. {used}"
    change = moved(n.numbers(files.decision.get("current")), n.numbers(files.decision.get("proposal")), 4)
    proposed = f" Proposed: {change}." if change else ""
    stage = f" Stage {files.decision['stage']}." if files.decision.get("stage") else ""
    return mark + f"<p>{code_marks(text + proposed + stage)}</p>"


def _candidate_table(files: DecisionFiles, objective: dict[str, float]) -> str:
    if not files.rows:
        return paragraph("No candidate has been scored yet.")
    found = panels.against_old(files, objective)
    finite = [row.objective for row in files.rows if row.status == "ok" and math.isfinite(row.objective)]
    best = min(finite, default=math.nan)
    rows, marked = [], []
    for row, gain in zip(files.rows, found, strict=True):
        shares = [n.share(row.ratios.get(name, 0.0)) for name in files.domains]
        compared = "in force" if row is files.rows[0] else panels.interval(gain)
        rows.append([row.run, row.status, n.loss(row.objective), compared, *shares])
        marked.append("bad" if row.status in ("nan", "failed") else "best" if row.objective == best else "")
    if files.checked is not None:
        row = files.checked
        shares = [n.share(row.ratios.get(name, 0.0)) for name in files.domains]
        gain = panels.against_old(DecisionFiles(files.name, rows=[files.rows[0], row]), objective)[-1]
        rows.append(
            ["proposal, simulated", row.status, n.loss(row.objective), panels.interval(gain), *shares]
        )
    drawn = table(
        ["candidate", "status", "objective", "gain (95 % interval)", *files.domains],
        rows,
        caption="Objective in nats per token, gain over the mixture in force (paired), and simulated share by domain",
        text_columns=2,
        marked=marked,
    )
    return fold(f"{n.plural(len(files.rows), 'candidate')} and their mixtures", drawn)


def _shares(files: DecisionFiles) -> str:
    old, new = n.numbers(files.decision.get("current")), n.numbers(files.decision.get("proposal"))
    if not new:
        return ""
    simulated = n.numbers(files.details.get("simulated"))
    rows = [
        [
            name,
            n.share(old.get(name, 0.0)),
            n.share(new.get(name, 0.0)),
            f"{n.fixed(100 * (new.get(name, 0.0) - old.get(name, 0.0)), 1, sign=True)} pp",
            n.share(simulated.get(name)),
        ]
        for name in files.domains
    ]
    drawn = table(
        ["domain", "in force until here", "proposed", "change", "simulated"],
        rows,
        caption="Share of training tokens. Simulated: the nearest mixture that the probes add up to; it was the one measured",
    )
    return fold("Shares as numbers", drawn)


def _binding(files: DecisionFiles) -> str:
    binding = files.details.get("binding")
    if not isinstance(binding, list) or not binding:
        return ""
    return section("What holds the proposal where it is", items(binding), level=4)


def _losses(files: DecisionFiles, objective: dict[str, float]) -> str:
    """Losses of the two simulated models, the gain by set, and what the law says."""
    old, new = n.numbers(files.details.get("losses_old")), n.numbers(files.details.get("losses_proposal"))
    predicted = n.numbers(files.details.get("predicted"))
    if not (old or predicted):
        return ""
    rows = []
    for name in files.sets or list(predicted):
        gain = panels.UNKNOWN
        if files.rows and files.checked is not None:
            gain = panels.set_gain(files, {name: 1.0})
        rows.append(
            [
                name,
                n.loss(old.get(name)),
                n.loss(new.get(name)),
                panels.interval(gain)
                if math.isfinite(gain.mean)
                else n.loss(old.get(name, math.nan) - new.get(name, math.nan), sign=True),
                n.loss(predicted.get(name)),
                n.percent(objective.get(name, 0.0)),
            ]
        )
    gain = files.decision.get("gain")
    if isinstance(gain, dict):
        spread = f"{n.loss(gain.get('mean'), sign=True)} ({n.loss(gain.get('low'), sign=True)} to {n.loss(gain.get('high'), sign=True)})"
        whole = [
            sum(w * losses.get(name, math.nan) for name, w in objective.items() if w)
            for losses in (old, new, predicted)
        ]
        rows.append(["objective", n.loss(whole[0]), n.loss(whole[1]), spread, n.loss(whole[2]), "100.0 %"])
    drawn = table(
        [
            "held-out set",
            "in force, simulated",
            "proposal, simulated",
            "gain (95 % interval)",
            "law, trained",
            "weight",
        ],
        rows,
        caption="Loss in nats per token on the search's held-out sequences; the law's column is its prediction for "
        "training on the proposal",
    )
    return fold("Losses as numbers", drawn)


def _law(files: DecisionFiles, check: LawCheck | None) -> str:
    if not files.decision.get("law_name"):
        return paragraph("No law was fitted.") if files.decision else ""
    quality = files.decision.get("law")
    quality = quality if isinstance(quality, dict) else {}
    rows = []
    for name, values in quality.items():
        score = n.numbers(values)
        keys = ("r2", "r2_cv", "spearman_cv")
        rows.append(
            [
                name,
                *(n.fixed(score.get(key), 3) for key in keys),
                n.loss(score.get("rmse_cv")),
                n.count(score.get("rows")),
            ]
        )
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
        caption="Quality of the law: Spearman's rank correlation and root mean square error (nats per token) by cross-validation",
    )
    text = paragraph(f"Law: {files.decision['law_name']}.", _weak(quality), _reading(check))
    hidden = len(check.sets) - panels.MOST_SETS if check else 0
    more = paragraph(f"{n.plural(hidden, 'more set')} in the table.", kind="soft") if hidden > 0 else ""
    absent = (
        ""
        if check
        else paragraph("law.json or the candidates are missing, so the law is not drawn.", kind="soft")
    )
    shown = grid(panels.law_panels(files, check))
    return section(
        "Law against observation", text + shown + more + absent + fold("Quality as numbers", drawn), level=4
    )


def _weak(quality: dict[str, object]) -> str:
    """A warning where the law does not rank candidates that it has not seen."""
    value = n.numbers(quality.get("objective")).get("spearman_cv", math.nan)
    if not math.isfinite(value):
        return "Its quality could not be judged by cross-validation."
    text = f"Out of fold its rank correlation for the objective is {n.fixed(value, 2)}"
    if value < 0.5:
        return f"{text}: it hardly ranks candidates it has not seen, so the proposal stands on its own measured gain."
    return f"{text} (1 is perfect, 0 is chance)."


def _reading(check: LawCheck | None) -> str:
    if check is None:
        return ""
    text = "Below, each dot is a candidate: the loss measured, and the loss by the law as fitted; dashed is equality."
    if check.eps is None:
        return text
    fitted, read = check.eps
    return (
        f"{text} For the proposal the law was read with the pseudo-count {n.power(read)} instead of the fitted "
        f"{n.power(fitted)}, because adding up probes blurs small shares. Its predictions for training therefore "
        "differ in level from the losses of simulated candidates and are not drawn here."
    )


def _cost(files: DecisionFiles) -> str:
    cost = files.details.get("cost")
    if not isinstance(cost, dict) or not cost:
        return ""
    wall = n.numbers(files.details.get("wall_seconds"))
    rows = []
    for name, units in cost.items():
        amounts = n.numbers(units)
        rows.append(
            [
                name,
                n.count(amounts.get("tokens", 0.0)),
                n.power(amounts.get("flops", 0.0)),
                n.seconds(amounts.get("seconds")),
                n.seconds(wall.get(name)),
                n.size(amounts.get("bytes", 0.0)),
            ]
        )
    drawn = table(
        ["purpose", "tokens", "FLOPs", "computing time", "waiting time", "bytes"],
        rows,
        caption="Cost of this decision",
    )
    return fold("Cost of this decision", drawn)
