"""What every decision promised, and what came: the objective at the end of its stage."""

from __future__ import annotations

import math

from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import paragraph, table
from opmix_ray.report.decision_panels import interval
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import IN_FORCE, TAKEN, gain_over, outlooks

COUNTED = "data"  # the law that predicts what a stage ends at; others predict differences only


def promises(run: RunFiles) -> str:
    """The table, and how it is read; empty where no decision promised anything."""
    rows = []
    for files in run.decisions:
        gain = gain_over(files, IN_FORCE)
        if not files.decision or not math.isfinite(gain.mean):
            continue
        end, (step, came) = _expected_end(files), ended_at(run, files)
        rows.append(
            [
                f"decision {files.decision.get('index', files.name)}",
                n.count(files.decision.get("step")),
                interval(gain),
                n.loss(end),
                n.loss(came),
                n.loss(came - end, sign=True),
                n.count(step),
            ]
        )
    if not rows:
        return ""
    head = [
        "decision",
        "at step",
        "promised gain (95 % interval)",
        "promised end",
        "came",
        "difference",
        "at step",
    ]
    caption = (
        "Objective: promised gain over the mixture before, what the stage was promised to end at, and what was "
        "measured at its end or last"
    )
    return table(head, rows, caption=caption) + paragraph(
        "A gain compares with a mixture that was not trained. Only a second run under that mixture shows it: "
        "`opmix report THIS OTHER` then compares what came with what was promised. The promised end comes from a law "
        "of counted words, which knows the model's level only roughly.".replace("`", ""),
        kind="soft",
    )


def _expected_end(files: DecisionFiles) -> float:
    if files.decision.get("law_name") != COUNTED:
        return math.nan
    return next((o.expected for o in outlooks(files, {}) if o.name == TAKEN), math.nan)


def ended_at(run: RunFiles, files: DecisionFiles) -> tuple[float, float]:
    """Step and what the decision minimised, at the last evaluation in its stage after it; NaN without one."""
    aim = run.judged(files)
    begin, end = n.number(files.decision.get("step")), math.inf
    total = 0
    for stage in run.config.stages if run.config else []:
        total += stage.steps
        if stage.name == files.decision.get("stage"):
            end = total
    after = [
        (step, value)
        for row in run.evaluations
        if begin < (step := n.number(row.get("step"))) <= end
        and math.isfinite(value := aim.at(n.numbers(row.get("losses"))))
    ]
    return after[-1] if after else (math.nan, math.nan)
