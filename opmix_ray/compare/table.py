"""A comparison as CSV, and as a table for a terminal, a page or a README."""

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
    """The summary in few columns: what a person looks at first; `legend` says what they mean.

    Args:
        content: of compare.json.
    """
    summary = content["summary"]
    cells = {
        "mean loss": [_quantity(entry, "mean_loss", 4, "relative_loss") for entry in summary],
        "mean perplexity": [_quantity(entry, "mean_perplexity", 1, "perplexity") for entry in summary],
        "mean accuracy": [_quantity(entry, "mean_accuracy", 4) for entry in summary],
        "forgetting": [_quantity(entry, "forgetting", 4) for entry in summary],
        "FLOPs": [_flops(entry, content["equal_compute"]) for entry in summary],
        "of them search": [
            f"{100 * entry['search_flops']['mean'] / entry['flops']['mean']:.1f} %" for entry in summary
        ],
        "wall seconds": [f"{entry['wall_seconds']['mean']:.0f}" for entry in summary],
    }
    shown = {title: column for title, column in cells.items() if any(cell != "-" for cell in column)}
    return [
        {"strategy": entry["strategy"], **{title: column[place] for title, column in shown.items()}}
        for place, entry in enumerate(summary)
    ]


def legend(content: Mapping[str, Any]) -> str:
    """What the table's numbers mean."""
    first, *others = content["strategies"]
    changes = f"; in brackets: against {first}, seed by seed" if others else ""
    return f"± is half a 95 % interval over seeds{changes}."


def to_markdown(content: Mapping[str, Any]) -> str:
    """The same as a Markdown table, with its legend below."""
    rows = table_rows(content)
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{legend(content)}\n"


def _quantity(entry: Mapping[str, Any], key: str, digits: int, change: str | None = None) -> str:
    """A mean with its interval, and how it differs from the baseline's."""
    text = with_interval(entry[key], digits)
    found = entry["versus"] and change and entry["versus"][change]
    return f"{text} ({percentage(found)})" if found else text


def _flops(entry: Mapping[str, Any], equal: bool) -> str:
    """All FLOPs; where they are not meant to be equal, also against the baseline's."""
    text = f"{entry['flops']['mean']:.3g}"
    if equal or not entry["versus"]:
        return text
    return f"{text} ({100 * entry['versus']['flops']['mean']:+.1f} %)"


def with_interval(value: Mapping[str, Any] | None, digits: int) -> str:
    """Mean and half-width of the interval; `-` where there is no value."""
    if value is None:
        return "-"
    text = f"{value['mean']:,.{digits}f}"
    return text if value["low"] is None else f"{text} ± {value['mean'] - value['low']:,.{digits}f}"


def percentage(value: Mapping[str, Any]) -> str:
    """A relative change in per cent with its interval."""
    half = "" if value["low"] is None else f" ± {100 * (value['mean'] - value['low']):.2f}"
    return f"{100 * value['mean']:+.2f}{half} %"
