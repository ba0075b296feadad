"""comparison.html: the first run against the others in what came, what was promised, and the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import contents, items, paragraph, section, shell, table
from opmix_ray.draw.panel import Dots, Line, Mark, Panel
from opmix_ray.draw.svg import figure, grid
from opmix_ray.errors import UserError
from opmix_ray.output.ledger import DECIDING, TRAINING
from opmix_ray.output.result import perplexity_change
from opmix_ray.output.state import COMPARISON
from opmix_ray.report.gather import RunFiles, gather
from opmix_ray.report.outlook import same
from opmix_ray.report.page import FOOTER
from opmix_ray.report.run_panels import MOST_SETS, NATS, STEPS
from opmix_ray.report.words import gain_over_uniform
from opmix_ray.storage import Storage

MOST = 8  # runs that can be told apart by colour
UNEQUAL = 0.05  # difference of all FLOPs above which two runs are no fair pair
_HEAD = (
    "run", "strategy", "seed", "steps", "tokens", "FLOPs in all", "deciding, of training", "objective", "to the first",
)  # fmt: skip
_CAPTION = "The first run's objective at each run's last evaluation, over the sets that all share; FLOPs with decisions"


def write_comparison(storages: Sequence[Storage]) -> dict[str, Any]:
    """Write comparison.html into the first run's output.

    Returns:
        `report`, its path; `verdict`, in words; `runs`, what stands in the table.

    Raises:
        UserError: more runs than can be told apart, one twice, or nothing that all of them were measured on.
    """
    uris = [storage.uri for storage in storages]
    if len(storages) > MOST:
        raise UserError(f"are more runs than the {MOST} that one page can tell apart", key="DIR", value=len(storages),
                        remedy="name fewer")  # fmt: skip
    if twice := next((uri for uri in uris if uris.count(uri) > 1), None):
        raise UserError("is named twice", key="DIR", value=twice, remedy="name each run once")
    runs = [gather(storage) for storage in storages]
    if not _shared(runs):
        raise UserError(
            "share no evaluation set that all of them have measured", key="DIR", value=" ".join(uris),
            remedy="name runs with the same evaluation sets that have been evaluated",
        )  # fmt: skip
    storages[0].write_text(COMPARISON, render(runs))
    rows = [dict(zip(_HEAD, row, strict=True)) for row in _rows(runs)]
    return {"report": storages[0].path(COMPARISON), "verdict": verdict(runs), "runs": rows}


def render(runs: Sequence[RunFiles]) -> str:
    """The whole page as one HTML text."""
    parts = [
        ("runs", "Runs", table(_HEAD, _rows(runs), caption=_CAPTION, text_columns=2)),
        ("loss", "Loss", figure(_objective(runs)) + grid(_sets(runs), legend=False) + _set_table(runs)),
        ("mixtures", "Mixtures at the end", figure(_mixtures(runs)) + _mixture_table(runs)),
    ]
    warned = unfair(runs)
    box = f'<div class="bad" role="note"><b>Not to be trusted</b>{items(warned)}</div>' if warned else ""
    promised = "".join(paragraph(text, kind="lead") for text in promised_words(runs))
    head = f"<h1>{len(runs)} runs compared</h1>{paragraph(verdict(runs), kind='verdict')}{promised}{box}"
    body = "\n".join(section(title, text, name=name) for name, title, text in parts)
    links = contents((name, title) for name, title, _ in parts)
    return shell("Runs compared", f"<header>{head}{links}</header>\n<main>{body}</main>", footer=FOOTER)


def verdict(runs: Sequence[RunFiles]) -> str:
    """The first run against each other one, in a sentence."""
    names, first, weights = labels(runs), runs[0], _weights(runs)
    here, parts, early = _last(first, weights), [], []
    for name, run in zip(names[1:], runs[1:], strict=True):
        gap = here - _last(run, weights)
        if not (math.isfinite(gap) and run.finished and first.finished):
            early.append(name)
            continue
        amount = n.percent(abs(perplexity_change(gap))) if first.has_perplexity else n.loss(abs(gap))
        unit = "in perplexity" if first.has_perplexity else "in the objective"
        parts.append(f"{amount} {'lower' if gap <= 0 else 'higher'} {unit} than {name}")
    cost = f"; deciding cost it {n.percent(first.overhead)} of its training" if first.overhead > 0 else ""
    found = [f"{names[0]} ends {', '.join(parts)}{cost}."] if parts else []
    if early:
        found.append(f"{names[0]} is not comparable yet with {' and '.join(early)}: both must be finished.")
    return " ".join(found)


def promised_words(runs: Sequence[RunFiles]) -> list[str]:
    """What the first run's decisions promised against uniform, and what came, where another run is uniform."""
    made = [files for files in runs[0].decisions if files.decision]
    if not made:
        return []
    gain, weights, found = gain_over_uniform(made), _weights(runs), []
    for name, run in zip(labels(runs)[1:], runs[1:], strict=True):
        mixtures = [n.numbers(entry.get("mixture")) for entry in run.history]
        plain = bool(mixtures) and all(same(each, dict.fromkeys(each, 1 / len(each))) for each in mixtures)
        came = _last(run, weights) - _last(runs[0], weights)
        if plain and math.isfinite(gain.mean) and math.isfinite(came):
            where = "inside" if gain.low <= came <= gain.high else "outside"
            found.append(
                f"Against uniform the law promised {n.loss(gain.mean)} nats per token "
                f"({n.loss(gain.low, sign=True)} to {n.loss(gain.high, sign=True)}); {n.loss(came)} came, measured "
                f"against {name}: {where} the interval."
            )
    return found


def unfair(runs: Sequence[RunFiles]) -> list[str]:
    """What else than their mixtures may explain a difference between the runs."""
    names, first, found = labels(runs), runs[0], []
    for name, run in zip(names[1:], runs[1:], strict=True):
        ratio = _flops(run) / _flops(first)
        if abs(ratio - 1) > UNEQUAL:
            found.append(
                f"{name} took {n.fixed(ratio, 2)} times the FLOPs of {names[0]}, decisions included."
            )
        if run.config and first.config:
            if run.config.model != first.config.model:
                found.append(f"{name} is another model than {names[0]}.")
            if run.config.seed != first.config.seed:
                found.append(f"{name} has seed {run.config.seed}, {names[0]} has seed {first.config.seed}.")
        if not same(run.objective, first.objective):
            found.append(f"{name} minimises something else; both are judged by the objective of {names[0]}.")
    for name, run in zip(names, runs, strict=True):
        if not run.finished:
            found.append(f"{name} is not finished: step {run.step:,} of {run.planned_steps:,}.")
    if missing := [name for name, weight in first.objective.items() if weight and name not in _shared(runs)]:
        found.append(f"Sets that are not measured in every run are left out: {', '.join(missing)}.")
    return [*found, "One run of each: another seed may say otherwise; `opmix compare` runs several."]


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """A short name for each: that of its directory, or all of its path where two are the same."""
    tails = [run.uri.rstrip("/").rpartition("/")[2] for run in runs]
    return [run.uri if tails.count(tail) > 1 else tail for run, tail in zip(runs, tails, strict=True)]


def _rows(runs: Sequence[RunFiles]) -> list[list[str]]:
    weights = _weights(runs)
    first = _last(runs[0], weights)
    return [
        [
            name,
            run.config.strategy if run.config else n.NOTHING,
            str(run.config.seed) if run.config else n.NOTHING,
            n.count(run.step),
            n.count(run.ledger.get("main", {}).get("tokens")),
            n.power(_flops(run)),
            n.percent(run.overhead),
            n.loss(_last(run, weights)),
            n.loss(_last(run, weights) - first, sign=True),
        ]
        for name, run in zip(labels(runs), runs, strict=True)
    ]


def _flops(run: RunFiles) -> float:
    """Of training and deciding."""
    return (
        sum(run.ledger.get(purpose, {}).get("flops", 0.0) for purpose in (*TRAINING, *DECIDING)) or math.nan
    )


def _shared(runs: Sequence[RunFiles]) -> list[str]:
    return [name for name in runs[0].sets if all(name in run.sets for run in runs)]


def _weights(runs: Sequence[RunFiles]) -> dict[str, float]:
    """The first run's objective over what all measure; where it weighs none of that, each set alike."""
    shared = _shared(runs)
    weights = {name: runs[0].objective.get(name, 0.0) for name in shared}
    total = sum(weights.values())
    return {name: weight / total if total > 0 else 1 / len(shared) for name, weight in weights.items()}


def _at(row: dict[str, Any], weights: dict[str, float]) -> float:
    losses = n.numbers(row.get("losses"))
    return sum(weight * losses.get(name, math.nan) for name, weight in weights.items() if weight)


def _last(run: RunFiles, weights: dict[str, float]) -> float:
    return _at(run.evaluations[-1], weights) if run.evaluations else math.nan


def _objective(runs: Sequence[RunFiles]) -> Panel:
    weights = _weights(runs)
    curves = [[_at(row, weights) for row in run.evaluations] for run in runs]
    return _curves(runs, "objective", "Objective", curves, wide=True)


def _sets(runs: Sequence[RunFiles]) -> list[Panel]:
    """Small panels on the same axes; a run has its colour in all of them."""
    found = []
    for place, name in enumerate(_shared(runs)[:MOST_SETS]):
        curves = [
            [n.numbers(row.get("losses")).get(name, math.nan) for row in run.evaluations] for run in runs
        ]
        found.append((f"set-{place:02d}", name, curves))
    known = [value for _, _, curves in found for curve in curves for value in curve if math.isfinite(value)]
    room = 0.05 * (max(known) - min(known)) or 0.5 if known else 0.5
    limits = (min(known) - room, max(known) + room) if known else None
    return [_curves(runs, name, title, curves, limits) for name, title, curves in found]


def _curves(
    runs: Sequence[RunFiles], name: str, title: str, curves: Sequence[Sequence[float]],
    limits: tuple[float, float] | None = None, *, wide: bool = False,
) -> Panel:  # fmt: skip
    marks: list[Mark] = []
    for place, (label, run, values) in enumerate(zip(labels(runs), runs, curves, strict=True)):
        steps = [n.number(row.get("step")) for row in run.evaluations]
        titles = [
            f"{label}, step {step:,.0f}: {n.loss(value)}" for step, value in zip(steps, values, strict=True)
        ]
        marks += [Line(steps, values, place, label), Dots(steps, values, place, titles=titles)]
    return Panel(
        name=name,
        title=title,
        description=f"{title} over steps, one line a run.",
        marks=marks,
        x_label=STEPS,
        y_label=NATS,
        x_range=(0.0, 1.02 * max(1, *(run.planned_steps for run in runs))),
        y_range=limits,
        x_scale="whole",
        wide=wide,
    )


def _set_table(runs: Sequence[RunFiles]) -> str:
    names, weights = labels(runs), _weights(runs)
    rows = []
    for name in _shared(runs):
        ends = [n.numbers(run.evaluations[-1].get("losses")).get(name, math.nan) for run in runs]
        rows.append([name, *map(n.loss, ends), n.percent(weights[name])])
    rows.append(["objective", *(n.loss(_last(run, weights)) for run in runs), n.percent(1.0)])
    caption = "Held-out loss at each run's last evaluation, nats per token, and weight in the objective"
    marked = [""] * (len(rows) - 1) + ["best foot"]
    return table(["held-out set", *names, "weight"], rows, caption=caption, marked=marked)


def _final(run: RunFiles) -> dict[str, float]:
    return n.numbers(run.history[-1].get("mixture")) if run.history else {}


def _domains(runs: Sequence[RunFiles]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.domains))


def _mixtures(runs: Sequence[RunFiles]) -> Panel:
    domains = _domains(runs)
    at = [float(i) for i in range(len(domains))]
    marks: list[Mark] = []
    for place, (label, run) in enumerate(zip(labels(runs), runs, strict=True)):
        shares = [_final(run).get(name, math.nan) for name in domains]
        titles = [f"{label}, {name}: {n.share(share)}" for name, share in zip(domains, shares, strict=True)]
        marks.append(Dots(shares, at, place, label, titles=titles))
    known = [share for run in runs for share in _final(run).values() if math.isfinite(share)]
    return Panel(
        name="mixtures",
        title="Share of training tokens by domain",
        description="The last mixture of each run.",
        marks=marks,
        categories=domains,
        x_label="share of training tokens",
        x_range=(0.0, 1.02 * max(known, default=1.0)),
        x_scale="percent",
        wide=True,
    )


def _mixture_table(runs: Sequence[RunFiles]) -> str:
    rows = [[name, *(n.share(_final(run).get(name, 0.0)) for run in runs)] for name in _domains(runs)]
    return table(["domain", *labels(runs)], rows, caption="Share of training tokens by domain, last mixture")
