"""Tables and closing words for the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, summary
from opmix_ray.output.result import kept_words, perplexity_of
from opmix_ray.runner.base import beginning, start_stage


def prepared_table(config: RunConfig, prepared: Prepared) -> list[dict[str, Any]]:
    """Tokens, leaks and epochs of every domain at the first stage's mixture over all stages."""
    mixture = start_stage(config, 0, beginning(config), prepared).mixture
    total = sum(stage.steps for stage in config.stages) * config.train.batch_size * prepared.seq_len
    return [dict(row) for row in summary(prepared, mixture, total)]


def closing_words(result: Mapping[str, Any], report: str) -> str:
    """What `opmix run` says at the end: mixture, loss, cost, report."""
    first, last = result["evaluations"][0], result["evaluations"][-1]
    ledger = result["ledger"]
    main = ledger["main"]
    deciding = sum(ledger[purpose]["seconds"] for purpose in ("probes", "search", "fit"))
    shares = "  ".join(f"{name} {share:.3f}" for name, share in result["final_mixture"].items())
    changed = sum(1 for decision in result["decisions"] if decision["kept"] == "proposal")
    return "\n".join(
        [
            f"mixture   {shares}",
            f"decisions {len(result['decisions'])}, of which {changed} changed the mixture",
            f"objective {first['objective']:.4f} -> {last['objective']:.4f}"
            f"{_perplexity(first, last, result.get('objective', {}))}",
            *_accuracy(first, last),
            *([f"kept      {kept_words(result['kept'])}"] if result.get("kept") else []),
            *(f"harness   {task}: {_cell(scores)}" for task, scores in result.get("harness", {}).items()),
            f"cost      {main['tokens']:,.0f} tokens trained in {main['seconds']:.0f} worker seconds; deciding took "
            f"{deciding:.0f} worker seconds and {100 * ledger['overhead']:.1f} % of the training FLOPs",
            f"report    {report}",
        ]
    )


def _perplexity(first: Mapping[str, Any], last: Mapping[str, Any], objective: Mapping[str, float]) -> str:
    """The targets' perplexity and its change, as the report has them."""
    before, after = (perplexity_of(row, objective) for row in (first, last))
    if math.isnan(before):
        return ""
    return f" nats per token, perplexity {before:.1f} -> {after:.1f} ({100 * (after / before - 1):+.1f} %)"


def _accuracy(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    sets = last.get("accuracy") or {}
    if not sets:
        return []
    shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in sets.items())
    return [
        f"accuracy  {100 * first['mean_accuracy']:.1f} % -> {100 * last['mean_accuracy']:.1f} % ({shown})"
    ]


def print_table(console: Console, value: Any) -> None:
    """A list of rows, or a mapping, as a table."""
    rows: Sequence[Mapping[str, Any]] = (
        [{"key": key, "value": entry} for key, entry in value.items()]
        if isinstance(value, Mapping)
        else value
    )
    if not rows:
        return
    table = Table(box=None, show_header=not isinstance(value, Mapping), pad_edge=False)
    for column in rows[0]:
        numeric = all(isinstance(row[column], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(start) for start in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {_cell(start)}" for key, start in value.items())
    return str(value)


def front_table(points: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for every point of a front: the sets' predicted losses, then the shares."""
    return [
        {f"{name}, nats": f"{loss:.4f}" for name, loss in point["losses"].items()}
        | {name: f"{share:.3f}" for name, share in point["mixture"].items()}
        for point in points
    ]
