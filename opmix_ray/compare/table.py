"""A comparison as CSV, and as a table for a terminal or a README."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from opmix_ray.compare.summary import Row

_PLAIN = (
    "strategy", "seed", "mean_loss", "mean_perplexity", "mean_accuracy", "objective", "forgetting", "steps",
    "tokens", "flops", "search_flops", "worker_seconds", "wall_seconds",
)  # fmt: skip


def to_csv(rows: Sequence[Row]) -> str:
    """One line per run; `eval_<set>_loss` and `eval_<set>_perplexity` per set, as in metrics.csv."""
    sets = list(dict.fromkeys(name for row in rows for name in row.losses))
    head = [*_PLAIN, *(f"eval_{s}_loss" for s in sets), *(f"eval_{s}_perplexity" for s in sets)]
    lines = [
        [
            *("" if getattr(row, key) is None else getattr(row, key) for key in _PLAIN),
            *(row.losses.get(s, "") for s in sets),
            *(row.perplexity.get(s, "") for s in sets),
        ]
        for row in rows
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def table_rows(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """The summary in few columns: what a person looks at first.

    Args:
        content: of compare.json.
    """
    baseline, summary = content["strategies"][0], content["summary"]
    quality = {
        "mean loss": lambda entry: with_interval(entry["mean_loss"], 4),
        "mean perplexity": lambda entry: with_interval(entry["mean_perplexity"], 1),
        f"perplexity vs {baseline}": lambda entry: percentage(
            entry["versus"] and entry["versus"]["perplexity"]
        ),
        "mean accuracy": lambda entry: with_interval(entry["mean_accuracy"], 4),
        "forgetting": lambda entry: with_interval(entry["forgetting"], 4),
    }
    columns = {
        title: [cell(entry) for entry in summary]
        for title, cell in quality.items()
        if any(cell(entry) != "-" for entry in summary)
    }
    return [
        {
            "strategy": entry["strategy"],
            **{title: cells[place] for title, cells in columns.items()},
            "FLOPs": f"{entry['flops']['mean']:.3g}",
            "of them search": f"{100 * entry['search_flops']['mean'] / entry['flops']['mean']:.1f} %",
            "wall seconds": f"{entry['wall_seconds']['mean']:.0f}",
        }
        for place, entry in enumerate(summary)
    ]


def to_markdown(content: Mapping[str, Any]) -> str:
    """The same as a Markdown table."""
    rows = table_rows(content)
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def with_interval(value: Mapping[str, Any] | None, digits: int) -> str:
    """Mean and half-width of the interval; `-` where there is no value."""
    if value is None:
        return "-"
    text = f"{value['mean']:,.{digits}f}"
    return text if value["low"] is None else f"{text} ± {value['mean'] - value['low']:,.{digits}f}"


def percentage(value: Mapping[str, Any] | None) -> str:
    """A relative change in per cent with its interval; `-` for the baseline."""
    if value is None:
        return "-"
    text = f"{100 * value['mean']:+.2f} %"
    return text if value["low"] is None else f"{text} ± {100 * (value['mean'] - value['low']):.2f}"
