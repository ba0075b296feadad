"""`fit.html`: the proposal with intervals, what binds, how well the law predicts, and what helps what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from opmix_ray.draw.html import code_marks, esc, fold, items, paragraph, section, shell, table
from opmix_ray.draw.numbers import fixed, percent, plural, seconds, share
from opmix_ray.draw.panel import Dots, Line, Panel, Rects, Whiskers
from opmix_ray.draw.svg import figure, grid
from opmix_ray.exchange.columns import turned
from opmix_ray.fit.result import FitResult
from opmix_ray.fit.sizes import Scale

STEP = 0.01  # of a share, in the interaction matrix
MOST_DOTS = 200  # in one panel
SEPARATORS = "_/.- "
OPEN_LEFT_OUT = 5  # rows left out up to which the list is open


def render(result: FitResult) -> str:
    """The whole page as one HTML text."""
    title = f"Mixture from {plural(len(result.sweep.runs), 'run')}{result.target_words()}"
    body = [
        _proposal(result),
        _quality(result),
        _interactions(result),
        _rows(result),
        _settings(result),
    ]
    footer = (
        f"A share is a share of training tokens. Metrics are in their own units, lower is better{_but(result)}. "
        "Out of fold: predicted by a law fitted without that run."
    )
    head = f"<header><h1>{esc(title)}</h1>{_opening(result)}</header>"
    return shell(title, f"{head}\n<main>{chr(10).join(body)}</main>", footer=footer, style=_HEAT)


def _but(result: FitResult) -> str:
    return f" but for {', '.join(result.tops)}" if result.tops else ""


def _opening(result: FitResult) -> str:
    proposal, quality = result.proposal, result.law.quality["objective"]
    interval = proposal.gain_interval
    known = f" (90 % interval {fixed(interval[0])} to {fixed(interval[1])})" if interval else ""
    base = "today's mixture" if result.objective.current is not None else "the prior"
    what = "greatest excess over the reference" if result.objective.worst_case else "objective"
    lead = (
        f"The proposal lowers the predicted {what} from {fixed(proposal.baseline_objective)} at {base} to "
        f"{fixed(proposal.objective)}, by {fixed(proposal.gain)}{known}."
    )
    tiles = [
        (str(len(result.sweep.runs)), "runs fitted"),
        (str(len(result.sweep.left_out)), "rows left out"),
        (result.law.name, "law"),
        (fixed(quality["spearman_cv"], 3), "rank correlation of the objective, out of fold"),
        (fixed(quality["rmse_cv"]), "error of the objective, out of fold"),
        (fixed(proposal.kl, 3), "nats from the prior"),
    ]
    boxes = "".join(f"<div><b>{esc(value)}</b><span>{esc(name)}</span></div>" for value, name in tiles)
    return f'<p class="lead">{esc(lead)}</p><div class="tiles">{boxes}</div>'


def _proposal(result: FitResult) -> str:
    proposal, domains = result.proposal, result.law.domains
    names = short(domains)
    order = sorted(range(len(domains)), key=lambda d: -proposal.mixture[domains[d]])
    at = list(range(len(order)))
    shares = [proposal.mixture[domains[d]] for d in order]
    prior = [result.prior[domains[d]] for d in order]
    intervals = proposal.weight_intervals or {}
    low = [intervals.get(domains[d], (math.nan, math.nan))[0] for d in order]
    high = [intervals.get(domains[d], (math.nan, math.nan))[1] for d in order]
    panel = Panel(
        name="proposal",
        title="The proposal and the prior",
        description="; ".join(f"{names[d]} {share(proposal.mixture[domains[d]])}" for d in order),
        marks=[
            Rects([(0.0, s, k - 0.3, k + 0.3) for k, s in zip(at, shares, strict=True)], 0, "proposal"),
            Whiskers(at, low, high, "ink", lying=True),
            Dots(prior, at, "muted", "prior", hollow=True),
        ],
        x_label="share of training tokens",
        categories=[names[d] for d in order],
        x_range=(0.0, 1.05 * max([*shares, *prior, *(v for v in high if math.isfinite(v))])),
        x_scale="percent",
        wide=True,
        note="whiskers: 90 % interval from refits" if intervals else "",
    )
    rows = [
        (
            domains[d],
            share(proposal.mixture[domains[d]]),
            f"[{share(low[k])}, {share(high[k])}]" if intervals else "n/a",
            share(result.prior[domains[d]]),
            f"[{share(result.lower.get(domains[d], 0.0))}, {share(result.upper.get(domains[d], 1.0))}]",
        )
        for k, d in enumerate(order)
    ]
    numbers = table(
        ("domain", "share", "90 % interval", "prior", "allowed"), rows, caption="Shares of training tokens"
    )
    binding = "<h3>What binds</h3>" + (
        items(proposal.binding)
        if proposal.binding
        else paragraph("Nothing: the proposal is inside all limits.")
    )
    parts = figure(panel) + _kl(result) + binding + fold("The numbers", numbers)
    return section("The mixture", parts, name="mixture")


def _kl(result: FitResult) -> str:
    curve = result.kl_curve
    if curve is None:
        return ""
    at = list(range(len(curve.weights)))
    ends = [(r - e, r + e) for r, e in zip(curve.regrets, curve.errors, strict=True)]
    panel = Panel(
        name="kl",
        title="Regret on unseen runs by weight of the KL term",
        description=curve.words(),
        marks=[
            Line(curve.regrets, at, 0),
            Whiskers(at, [low for low, _ in ends], [high for _, high in ends], "ink", lying=True),
            Dots(curve.regrets, at, 0),
        ],
        x_label="regret in units of the objective",
        categories=[f"{weight:.3g}" for weight in curve.weights],
        note=f"{curve.chosen:.3g} is taken; whiskers: standard errors",
    )
    return figure(panel)


def _quality(result: FitResult) -> str:
    law, sweep = result.law, result.sweep
    names = short(law.metric_names)
    if law.held_out is None:
        return ""
    used = law.weights > 0
    losses = turned(sweep.metrics, law.metric_names, result.tops)
    measured = np.column_stack([sweep.metrics, losses[:, used] @ law.weights[used]])
    held_out = law.held_out.copy()
    held_out[:, :-1] = turned(held_out[:, :-1], law.metric_names, result.tops)
    judged = result.judged()
    measured, held_out, runs = measured[judged], held_out[judged], [sweep.runs[row] for row in judged]
    panels = [
        _against(name, measured[:, m], held_out[:, m], runs)
        for m, name in [(len(names), "objective"), *enumerate(names)]
    ]
    rows = [
        (
            name,
            fixed(q["spearman_cv"], 3),
            fixed(q["rmse_cv"]),
            fixed(q["r2_cv"], 3),
            fixed(q["r2"], 3),
            str(q["rows"]),
        )
        for name, q in [
            ("objective", law.quality["objective"]),
            *((n, law.quality[n]) for n in law.metric_names if n != "objective"),
        ]
    ]
    numbers = table(
        ("metric", "rank correlation", "RMSE", "R²", "R² in sample", "rows"),
        rows,
        caption="Quality, out of fold but for the last R²",
    )
    details = [
        f"{stage['rows']} runs of {Scale(stage['size'], stage['tokens']).words()} correct the one before: its "
        f"slope is {stage['slope']:.2f}; {percent(1 - stage['share'], 0)} of the sum is a law of these runs alone."
        for stage in law.details.get("sizes", [])[1:]
    ]
    if "weights" in law.details:
        parts = ", ".join(f"`{n}` {percent(w, 0)}" for n, w in law.details["weights"].items())
        details.append(f"The law is a weighted mean of {parts}, as cross-validation weighs them.")
    own = law.details.get("objective", {}).get("weights", {})
    if len(own) > 1:
        details.append("The objective: " + ", ".join(f"`{n}` {percent(w, 0)}" for n, w in own.items()) + ".")
    return section(
        "How well the law predicts",
        paragraph("Every dot is a run, predicted by a law that has not seen it. On the line is right.")
        + items(details)
        + grid(panels)
        + numbers,
        name="quality",
    )


def _against(name: str, measured: np.ndarray, predicted: np.ndarray, runs: Sequence[str]) -> Panel:
    known = np.flatnonzero(np.isfinite(measured) & np.isfinite(predicted))
    note = ""
    if len(known) > MOST_DOTS:
        note = f"{MOST_DOTS} of {len(known)} runs are drawn"
        known = known[np.linspace(0, len(known) - 1, MOST_DOTS).astype(int)]
    x, y = predicted[known].tolist(), measured[known].tolist()
    low, high = (min([*x, *y]), max([*x, *y])) if len(known) else (0.0, 1.0)
    return Panel(
        name=f"quality-{name}",
        title=name,
        description=f"Measured against predicted {name} for {len(known)} runs",
        marks=[
            Line([low, high], [low, high], "muted", dashed=True),
            Dots(
                x,
                y,
                0,
                titles=[
                    f"{runs[k]}: {fixed(measured[k])}, predicted {fixed(predicted[k])}"
                    for k in known.tolist()
                ],
            ),
        ],
        x_label="predicted out of fold",
        y_label="measured",
        note=note,
    )


_HEAT = (
    ".heat td{--a:0;background:rgba(47,116,192,var(--a));min-width:3.2rem}"
    ".heat td.up{background:rgba(207,95,75,var(--a))}"
    ".heat th[scope=col]{white-space:normal;min-width:3.4rem;max-width:9rem}"
)


def _interactions(result: FitResult) -> str:
    """What one more percentage point of a domain does to every metric, the others shrinking in proportion."""
    law, mixture = result.law, result.proposal.mixture.array(result.law.domains)
    effect = effects(result.predicted, mixture, STEP)
    worse = [-1 if name in result.tops else 1 for name in law.metric_names]
    order = np.argsort(-mixture)
    top = np.abs(effect).max(axis=0)
    top = np.where(top > 0, top, 1.0)
    names, metrics = short(law.domains), short(law.metric_names)
    head = "".join(f'<th scope="col">{esc(name).replace("_", "_<wbr>")}</th>' for name in metrics)
    body = []
    for d in order:
        cells = "".join(
            f'<td class="{"up" if e * w > 0 else "down"}" style="--a:{0.55 * abs(e) / t:.2f}">{_small(e)}</td>'
            for e, t, w in zip(effect[d], top, worse, strict=True)
        )
        body.append(f'<tr><th scope="row" class="t">{esc(names[d])}</th>{cells}</tr>')
    caption = "Change of the predicted metric; blue is better, red is worse; shades compare within a column"
    heat = (
        f'<div class="scroll heat" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f'<caption>{esc(caption)}</caption><thead><tr><th scope="col" class="t">domain</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    text = (
        "One more percentage point of a domain, taken from the others in proportion, starting from the proposal: "
        "what each metric does, by the law."
    )
    return section("What helps what", paragraph(text) + heat, name="interactions")


def effects(predict: Callable[[np.ndarray], np.ndarray], mixture: np.ndarray, step: float) -> np.ndarray:
    """Change (D, M) of the metrics when a domain's share rises by `step` and the others shrink in proportion."""
    rest = np.maximum(1 - mixture, 1e-12)
    raised = mixture * (1 - step / rest)[:, None]
    raised[np.diag_indices_from(raised)] = mixture + step
    raised = np.maximum(raised, 0)
    raised = raised / raised.sum(axis=1, keepdims=True)
    return predict(raised) - predict(mixture)


def _rows(result: FitResult) -> str:
    left_out = result.sweep.left_out
    parts = [items(result.notes)] if result.notes else []
    if left_out:
        rows = [
            (item.run, item.file, str(item.line) if item.line else "n/a", item.reason) for item in left_out
        ]
        listed = table(
            ("run", "file", "line", "why"), rows, caption="Rows that are not in the fit", text_columns=4
        )
        parts.append(
            fold(f"{plural(len(left_out), 'row')} left out", listed, opened=len(left_out) <= OPEN_LEFT_OUT)
        )
    else:
        parts.append(paragraph("Every row of both files was used."))
    if columns := result.sweep.left_out_columns:
        listed = table(
            ("column", "file", "why"),
            [(column.name, column.file, column.reason) for column in columns],
            caption="Columns that are neither shares nor metrics",
            text_columns=3,
        )
        parts.append(fold(f"{plural(len(columns), 'column')} left out", listed))
    return section("Rows", "".join(parts), name="rows")


def _settings(result: FitResult) -> str:
    law = result.law
    weights = ", ".join(
        f"`{name}` {weight:.3g}"
        for name, weight in zip(law.metric_names, law.weights, strict=True)
        if weight > 0
    )
    same = len(set(law.weights.round(12).tolist())) == 1
    objective = "the mean of all metrics" if same else f"a weighted mean: {weights}"
    said = [
        f"Files: `{Path(result.inputs['ratios']).name}` and `{Path(result.inputs['metrics']).name}`.",
        f"The objective is {objective}.",
        f"KL to the prior counts {result.kl:g} per nat.",
        f"The fit took {seconds(result.seconds['fit'])}, the proposal {seconds(result.seconds['propose'])}.",
    ]
    if result.objective.worst_case:
        said.insert(2, "Minimised was the greatest excess of a metric over its reference.")
    if result.objective.no_worse_than is not None:
        said.insert(2, "Some metrics may not get worse than allowed.")
    return section(
        "Settings", "<ul>" + "".join(f"<li>{code_marks(s)}</li>" for s in said) + "</ul>", name="settings"
    )


def short(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin or end with."""
    if len(names) < 2:
        return list(names)
    head = _common(names)
    start = max(head.rfind(mark) for mark in SEPARATORS) + 1
    tails = [name[start:] for name in names]
    tail = _common([name[::-1] for name in tails])
    end = max(tail.rfind(mark) for mark in SEPARATORS) + 1
    found = [name[: len(name) - end] for name in tails]
    return found if all(found) and len(set(found)) == len(found) else list(names)


def _common(names: Sequence[str]) -> str:
    """The characters that all names begin with."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _small(value: float) -> str:
    return fixed(value, 4 if abs(value) < 0.01 else 3, sign=True)
