"""The parts of the page about the run as a whole; among them what every decision promised, and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable

from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import esc, fold, items, paragraph, section, table, tiles
from opmix_ray.draw.svg import figure, grid
from opmix_ray.report import run_panels as panels
from opmix_ray.report.decision_panels import interval
from opmix_ray.report.doubts import MANY_EPOCHS, delivery, doubts
from opmix_ray.report.gather import DecisionFiles, RunFiles
from opmix_ray.report.outlook import IN_FORCE, TAKEN, gain_over, outlooks
from opmix_ray.report.words import outcome, summary, verdict


def opening(run: RunFiles) -> str:
    """Title, verdict, what is not to be trusted, what is missing, the summary, the main numbers, where and when."""
    first, *rest = summary(run)
    text = paragraph(first, kind="lead") + "".join(paragraph(part) for part in rest)
    numbers = "" if run.searched else _tiles(run)
    head = f"<h1>{esc(run.name)}</h1>{paragraph(verdict(run), kind='verdict')}{_distrust(run)}{missing(run)}"
    return f"{head}{text}{numbers}{origin(run)}"


def _distrust(run: RunFiles) -> str:
    lines = doubts(run)
    if not lines:
        return ""
    return f'<div class="bad" role="note"><b>Do not trust</b>{items(lines)}</div>'


def origin(run: RunFiles) -> str:
    """Where the run lies, and when, on which machine and by which command it was made."""
    entries = [("output", run.uri)]
    if run.sessions:
        first, last = run.sessions[0], run.sessions[-1]
        seconds = sum(n.number(entry.get("seconds")) for entry in run.sessions)
        again = f", taken up {n.plural(len(run.sessions), 'time')}" if len(run.sessions) > 1 else ""
        entries += [
            ("begun", str(first.get("began", n.NOTHING)).replace("T", " ").replace("+00:00", " UTC")),
            ("host", ", ".join(dict.fromkeys(str(entry.get("host", n.NOTHING)) for entry in run.sessions))),
            ("command", str(last.get("command", n.NOTHING))),
            ("wall time", f"{n.seconds(seconds)}{again}"),
        ]
    lines = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in entries)
    return f'<dl class="origin">{lines}</dl>'


def missing(run: RunFiles) -> str:
    """What is not there or cannot be read."""
    if not run.notes:
        return ""
    why = "The run is not finished" if not run.finished else "The run is finished, but not all of it is here"
    head = paragraph(f"{why}; this page shows what there is:")
    return f'<div class="warn" role="note">{head}{items(run.notes)}</div>'


def mixtures(run: RunFiles) -> str:
    """Mixture over time."""
    if not run.history:
        return section("Mixture over time", paragraph("No mixture has been set yet."), name="mixture")
    head = ["from step", "stage", "why", *run.domains]
    rows = [
        [
            n.count(entry.get("step")),
            entry.get("stage", ""),
            entry.get("why", ""),
            *(n.share(n.numbers(entry.get("mixture")).get(name, 0.0)) for name in run.domains),
        ]
        for entry in run.history
    ]
    shares = table(head, rows, caption="Share of training tokens by domain, per cent", text_columns=3)
    if run.searched:
        return section("Mixture", shares, name="mixture")
    note = "Dotted lines are decisions; d0 is decision 0."
    return section(
        "Mixture over time",
        figure(panels.mixture_over_time(run)) + paragraph(note, kind="soft") + shares,
        name="mixture",
    )


def losses(run: RunFiles) -> str:
    """Held-out loss over time and at the end, and training loss."""
    shown = panels.set_losses(run)
    whole = grid([panels.objective_over_time(run), panels.training_loss(run)])
    if not (whole or shown):
        return section("Loss", paragraph("Nothing has been measured yet."), name="loss")
    rest = len(run.sets) - len(shown)
    more = paragraph(f"{n.plural(rest, 'more set')} in the table.", kind="soft") if shown and rest > 0 else ""
    key = paragraph(
        "Below, one curve for each domain and set, on the same axes: the grey line is the training loss on the "
        "domain's own sequences, blue what is held out.",
        kind="soft",
    )
    drawn = whole + (key + grid(shown, legend=False) if shown else "")
    return section("Loss", drawn + more + _loss_table(run), name="loss")


def tokens(run: RunFiles) -> str:
    """Delivered against planned, and epochs."""
    rows = delivery(run)
    if not any(math.isfinite(row.share) for row in rows):
        return section("Tokens delivered", paragraph("Nothing has been delivered yet."), name="tokens")
    repeated = [row for row in rows if row.epochs > MANY_EPOCHS]
    body = [
        [
            row.domain,
            n.share(row.planned),
            n.share(row.share),
            f"{n.fixed(100 * (row.share - row.planned), 2, sign=True)} pp",
            n.count(row.tokens),
            n.fixed(row.epochs, 3 if row.epochs < 10 else 1),
        ]
        for row in rows
    ]
    drawn = table(
        ["domain", "planned", "delivered", "difference", "tokens", "epochs"],
        body,
        caption="Share of training tokens by domain; epochs: how often the domain's training tokens were seen",
        marked=["bad" if row in repeated else "" for row in rows],
    )
    unknown = "" if run.finished else paragraph("Epochs are counted when the run is finished.", kind="soft")
    return section("Tokens delivered", grid([panels.delivered(run)]) + drawn + unknown, name="tokens")


def cost(run: RunFiles) -> str:
    """What the run spent, by purpose."""
    ledger = run.ledger
    if not ledger:
        return section("Cost", paragraph("Nothing has been spent yet."), name="cost")
    training = run.training_flops
    rows = [
        [
            panels.PURPOSES.get(name, name),
            n.count(units.get("tokens")),
            n.power(units.get("flops")),
            n.percent(units.get("flops", math.nan) / training) if training > 0 else n.NOTHING,
            n.seconds(units.get("seconds")),
            n.size(units.get("bytes")),
        ]
        for name, units in ledger.items()
    ]
    drawn = table(
        ["purpose", "tokens", "FLOPs", "of training", "seconds", "bytes"],
        rows,
        caption="Seconds are summed over workers; bytes are those put into the object store",
    )
    note = (
        ""
        if run.searched
        else paragraph(
            f"Deciding (probes, candidates, law and proposal) cost {n.percent(run.overhead)} of the FLOPs of training. "
            "Evaluation is counted by itself: it is done with or without decisions."
        )
    )
    return section("Cost", note + grid([panels.cost(run)]) + drawn, name="cost")


def configuration(run: RunFiles) -> str:
    """Seed, versions and the whole configuration."""
    seed = run.result.get("seed", run.config.seed if run.config else None)
    facts = [] if seed is None else [f"seed {seed}"]
    versions = run.result.get("versions") or run.state.get("versions")
    if isinstance(versions, dict):
        facts += [f"{name} {value}" for name, value in versions.items()]
    text = paragraph(", ".join(facts)) if facts else ""
    if run.config_text:
        text += fold(
            "config.yaml, with every default written out", f"<pre><code>{esc(run.config_text)}</code></pre>"
        )
    return section("Configuration", text or paragraph("There is no config.yaml."), name="configuration")


def gains(run: RunFiles) -> str:
    """All decisions in one table, and their gains in one figure, where there are several."""
    if len(run.decisions) < 2:
        return ""
    rows = []
    for files in run.decisions:
        gain = n.numbers(files.decision.get("gain"))
        spread = (
            f"{n.loss(gain.get('low'), sign=True)} to {n.loss(gain.get('high'), sign=True)}"
            if gain
            else n.NOTHING
        )
        rows.append(
            [files.title, outcome(files), n.loss(gain.get("mean"), sign=True), spread, str(len(files.rows))]
        )
    head = ["decision", "outcome", "gain", "interval", "candidates"]
    return grid([panels.gains(run)]) + table(
        head,
        rows,
        caption=", ".join(filter(None, ("Measured gain of each proposal in objective", run.unit))),
        text_columns=2,
    )


def _tiles(run: RunFiles) -> str:
    values = [run.weighted(row) for row in run.evaluations]
    known = [value for value in values if math.isfinite(value)]
    taken = sum(files.decision.get("kept") == "proposal" for files in run.decisions)
    trained = f"{run.step:,}" if run.finished else f"{run.step:,} / {run.planned_steps:,}"
    shown = [(trained, "steps trained")]
    if known:
        unit = f", {run.unit}" if run.unit else ""
        shown.append((n.loss(known[-1]), f"held-out objective{unit}; {n.loss(known[0])} at first"))
    if run.decisions:
        shown.append((f"{taken} of {len(run.decisions)}", "decisions that changed the mixture"))
    if math.isfinite(run.overhead):
        shown.append((n.percent(run.overhead), "cost of deciding, of the FLOPs of training"))
    return tiles(shown)


def _loss_table(run: RunFiles) -> str:
    if not run.evaluations:
        return ""
    first, last = run.evaluations[0], run.evaluations[-1]
    before, after = n.numbers(first.get("losses")), n.numbers(last.get("losses"))
    perplexity, bits = n.numbers(last.get("perplexity")), n.numbers(last.get("bits_per_byte"))
    weights = run.objective

    def change(old: float, new: float) -> str:
        return n.loss(new - old, sign=True)

    rows: list[Iterable[str]] = [
        [
            name,
            n.loss(before.get(name)),
            n.loss(after.get(name)),
            change(before.get(name, math.nan), after.get(name, math.nan)),
            n.fixed(perplexity.get(name), 2),
            n.fixed(bits.get(name), 4),
            n.percent(weights.get(name, 0.0)),
        ]
        for name in run.sets
    ]
    means = [
        _mean({name: loss for name, loss in part.items() if name in perplexity}) for part in (before, after)
    ]
    asked = [name for name in run.sets if name not in perplexity]
    averages = [n.fixed(_mean(perplexity), 2), n.fixed(_mean(bits), 4)]
    rows.append(
        [
            "mean of all losses" if asked else "mean of all sets",
            n.loss(means[0]),
            n.loss(means[1]),
            change(*means),
            *averages,
            "",
        ]
    )
    old, new = run.weighted(first), run.weighted(last)
    rows.append(
        ["objective", n.loss(old), n.loss(new), change(old, new), "", "", n.percent(sum(weights.values()))]
    )
    steps = [n.count(row.get("step")) for row in (first, last)]
    return table(
        [
            "held-out set",
            f"loss, step {steps[0]}",
            f"loss, step {steps[1]}",
            "change",
            "perplexity",
            "bits per byte",
            "weight",
        ],
        [list(row) for row in rows],
        caption=f"Held-out loss in nats per token; perplexity and bits per byte at step {steps[1]}; "
        "weight in the objective" + (f"; for {', '.join(asked)} the rate of wrong answers" if asked else ""),
        marked=[""] * (len(rows) - 2) + ["foot", "best foot"],
    )


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values) if values else math.nan


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
