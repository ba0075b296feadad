"""compare.html: one self-contained page made of the report's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opmix_ray.compare.summary import legend, percentage, table_rows, with_interval
from opmix_ray.draw import numbers as n
from opmix_ray.draw.html import esc, fold, paragraph, section, shell, table
from opmix_ray.draw.panel import Dots, Mark, Panel, Rects, Whiskers
from opmix_ray.draw.svg import figure, grid
from opmix_ray.output.result import kept_words


def render(content: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        content: of compare.json; strategies without a finished run are left out.
    """
    body = [_opening(content)]
    if content["summary"]:
        body += [_quality(content), _sets(content), _costs(content), _runs(content)]
    body.append(
        section("Configuration", fold("config.yaml", f"<pre><code>{esc(content['config'])}</code></pre>"))
    )
    footer = (
        "Losses are in nats per token on held-out documents. ± is half of the 95 % interval of Student's t over seeds. "
        "FLOPs hold the main run and everything done to decide; evaluations for reports are left out."
    )
    return shell(f"{content['name']}: comparison", f"<main>{chr(10).join(body)}</main>", footer=footer)


def _opening(content: Mapping[str, Any]) -> str:
    seeds = n.plural(len(content["seeds"]), "seed")
    equal = ", at equal compute with the search included" if content["equal_compute"] else ""
    said = f"{n.plural(len(content['strategies']), 'strategy', 'strategies')}, {seeds} each{equal}."
    done = "" if content["complete"] else " Not all runs are finished yet."
    return f"<h1>{esc(content['name'])}: comparison</h1>" + paragraph(said + done, kind="lead")


def _quality(content: Mapping[str, Any]) -> str:
    rows = table_rows(content)
    key, _ = _quality_key(content)
    best = min(entry[key]["mean"] for entry in content["summary"])
    marked = ["best" if entry[key]["mean"] == best else "" for entry in content["summary"]]
    caption = f"Averages over the evaluation sets and seeds. {legend(content)}"
    shown = table(list(rows[0]), [list(row.values()) for row in rows], caption=caption, marked=marked)
    return section("Quality", shown + grid([against_compute(content), _differences(content)]), name="quality")


def _quality_key(content: Mapping[str, Any]) -> tuple[str, str]:
    """What the plots show, and its name: the mean perplexity, or the objective where questions alone are asked."""
    text = all(entry["mean_perplexity"] is not None for entry in content["summary"])
    return ("mean_perplexity", "mean perplexity") if text else ("objective", "objective")


def against_compute(content: Mapping[str, Any]) -> Panel:
    """Quality against all FLOPs; further left and further down is better."""
    key, name = _quality_key(content)
    marks: list[Mark] = []
    for colour, entry in enumerate(content["summary"]):
        x, y = entry["flops"]["mean"], entry[key]
        if y["low"] is not None:
            marks.append(Whiskers([x], [y["low"]], [y["high"]], colour))
        title = f"{entry['strategy']}: {y['mean']:.2f} at {x:.3g} FLOPs"
        marks.append(Dots([x], [y["mean"]], colour, label=entry["strategy"], titles=[title]))
    return Panel(
        name="quality-against-compute",
        title="Quality against total compute",
        description=f"The {name} of each strategy against all its FLOPs, the search included.",
        marks=marks,
        x_label="FLOPs, search included",
        y_label=name,
    )


def _differences(content: Mapping[str, Any]) -> Panel | None:
    entries = [e for e in content["summary"] if e["versus"] and e["versus"]["perplexity"]]
    if not entries:
        return None
    marks: list[Mark] = []
    for place, entry in enumerate(entries):
        change = entry["versus"]["perplexity"]
        title = f"{entry['strategy']}: {percentage(change)}"
        marks.append(Dots([change["mean"]], [place], "accent", titles=[title]))
        if change["low"] is not None:
            marks.append(Whiskers([place], [change["low"]], [change["high"]], lying=True))
    return Panel(
        name="difference",
        title=f"Mean perplexity against {content['strategies'][0]}",
        description="Relative change of the mean perplexity, seed by seed; to the left is better.",
        marks=marks,
        categories=[entry["strategy"] for entry in entries],
        x_scale="percent",
        x_label="change, paired by seed",
    )


def _sets(content: Mapping[str, Any]) -> str:
    parts = []
    titles = {
        "losses": ("Final loss, nats per token; of questions the rate of wrong answers", 4),
        "perplexity": ("Final perplexity", 2),
        "accuracy": ("Final accuracy", 4),
    }
    for key, (title, digits) in titles.items():
        sets = list(content["summary"][0][key])
        rows = [
            [entry["strategy"], *(with_interval(entry[key].get(name), digits) for name in sets)]
            for entry in content["summary"]
        ]
        if sets:
            parts.append(table(["strategy", *sets], rows, caption=title))
    return section("Evaluation sets", "".join(parts), name="sets")


def _costs(content: Mapping[str, Any]) -> str:
    rows = [
        [
            entry["strategy"],
            n.count(entry["steps"]["mean"]),
            n.count(entry["tokens"]["mean"]),
            n.power(entry["flops"]["mean"]),
            n.power(entry["search_flops"]["mean"]),
            n.seconds(entry["worker_seconds"]["mean"]),
            n.seconds(entry["wall_seconds"]["mean"]),
        ]
        for entry in content["summary"]
    ]
    head = ["strategy", "steps", "tokens", "FLOPs", "of them to decide", "worker time", "wall time"]
    return section(
        "Costs", table(head, rows, caption="Means over seeds") + figure(_bars(content)), name="costs"
    )


def _bars(content: Mapping[str, Any]) -> Panel:
    entries = content["summary"]
    main, search = [], []
    for place, entry in enumerate(entries):
        decided, total = entry["search_flops"]["mean"], entry["flops"]["mean"]
        main.append((0.0, total - decided, place - 0.3, place + 0.3))
        search.append((total - decided, total, place - 0.3, place + 0.3))
    return Panel(
        name="costs",
        title="FLOPs by purpose",
        description="FLOPs of the main run and of deciding, for each strategy.",
        marks=[Rects(main, 0, label="main run"), Rects(search, 1, label="deciding")],
        categories=[entry["strategy"] for entry in entries],
        x_label="FLOPs",
    )


def _runs(content: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['strategy']}, seed {row['seed']}",
            n.loss(row["mean_loss"]),
            n.fixed(row["mean_perplexity"], 2),
            n.loss(row["forgetting"]),
            n.power(row["flops"]),
            " ".join(f"{name} {share:.3f}" for name, share in row["mixture"].items()),
        ]
        for row in content["rows"]
    ]
    head = ["run", "mean loss", "mean perplexity", "forgetting", "FLOPs", "last mixture"]
    if any(row.get("kept") for row in content["rows"]):
        head.append("weights kept")
        rows = [[*cells, kept_words(row["kept"])] for cells, row in zip(rows, content["rows"], strict=True)]
    return section("Runs", fold("Every run", table(head, rows, caption="Every run")), name="runs")
