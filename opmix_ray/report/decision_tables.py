"""The numbers of one decision: candidates, shares, losses, quality of the law, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opmix_ray.config.objective import Objective
from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import fold, paragraph, table
from opmix_ray.report import decision_panels as panels
from opmix_ray.report.gather import DecisionFiles
from opmix_ray.report.paired import UNKNOWN, Difference
from opmix_ray.report.run_panels import PURPOSES

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
        state = ("kept, and it binds" if binds else "kept") if kept else "cannot be kept with 95 % confidence"
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
