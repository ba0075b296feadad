"""`opmix fit` and `opmix predict`: a law for somebody's sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix_ray.commands.options import Json, Output
from opmix_ray.commands.show import show

if TYPE_CHECKING:
    from opmix_ray.fit import Told

Ratios = Annotated[Path, typer.Option(help="CSV of mixtures, one run a line.", show_default=False)]
Metrics = Annotated[Path, typer.Option(help="CSV of the runs' metrics, lower is better.", show_default=False)]
Caps = Annotated[Path | None, typer.Option(help="File of greatest shares, or of tokens and epochs.")]
Bounds = Annotated[Path | None, typer.Option(help="File of [least, greatest] shares.")]


def fit(
    ratios: Ratios,
    metrics: Metrics,
    output: Output = "runs/fit",
    law: Annotated[str, typer.Option(help="Mixing law: auto, log-linear, log-share, power, ...")] = "auto",
    prior: Annotated[
        str | None,
        typer.Option(
            help="uniform, proportional or a file; none: proportional where --caps holds all tokens."
        ),
    ] = None,
    kl: Annotated[
        str, typer.Option(help="Weight of KL to the prior, or auto: the weight of least regret.")
    ] = "0.05",
    caps: Caps = None,
    bounds: Bounds = None,
    objective: Annotated[Path | None, typer.Option(help="File of metric weights.")] = None,
    share_columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns of shares, names or patterns; none: they are found.", metavar="NAMES"),
    ] = None,
    metric_columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns of metrics, names or patterns; none: they are found.", metavar="NAMES"),
    ] = None,
    maximise: Annotated[
        list[str] | None,
        typer.Option(help="Metric that is better when higher, name or pattern.", metavar="NAME"),
    ] = None,
    minimise: Annotated[
        list[str] | None,
        typer.Option(help="Metric that is better when lower, whatever its name says.", metavar="NAME"),
    ] = None,
    changes: Annotated[
        Path | None,
        typer.Option(help="File of domains renamed, split, merged, added or removed since.", metavar="FILE"),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            help="Model size that the mixture is for, where runs are of several: 410M.", metavar="SIZE"
        ),
    ] = None,
    target_tokens: Annotated[
        str | None, typer.Option(help="Training tokens that the mixture is for: 20B.", metavar="TOKENS")
    ] = None,
    size_column: Annotated[
        str | None, typer.Option(help="Column of model sizes; none: all runs are one sweep.", metavar="NAME")
    ] = None,
    tokens_column: Annotated[
        str | None, typer.Option(help="Column of training tokens; none: they do not count.", metavar="NAME")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Refits for the intervals; 0: none.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a law to a sweep of runs and propose a mixture."""
    from opmix_ray.fit import closing_words, fit_command

    with _told(as_json) as told:
        summary = fit_command(
            ratios, metrics, output or "runs/fit", law, prior, kl, caps, bounds, objective,
            share_columns=share_columns, metric_columns=metric_columns, maximise=maximise or (),
            minimise=minimise or (), changes=changes, target_size=target_size, target_tokens=target_tokens,
            size_column=size_column, tokens_column=tokens_column, bootstrap=bootstrap, seed=seed, told=told,
        )  # fmt: skip
    show(summary, closing_words(summary), as_json)


def predict(
    directory: Annotated[str, typer.Argument(help="Output of `opmix fit`.")],
    ratios: Annotated[Path, typer.Option(help="CSV of new mixtures.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Predict the metrics of new mixtures with a fitted law."""
    from opmix_ray.fit import predict_command

    found = predict_command(directory, ratios, output)
    show(found, {key: value for key, value in found.items() if key != "left_out"}, as_json)


@contextmanager
def _told(as_json: bool) -> Iterator[Told]:
    """What a person sees while a sweep is fitted: lines on the output, on a terminal a bar with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from opmix_ray.commands.show import console
    from opmix_ray.fit import Told

    if as_json:
        yield Told()
        return
    there = sys.stdin.isatty() and sys.stdout.isatty()
    screen = console()
    shown = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=shown, transient=True,
        disable=not shown.is_terminal,
    )  # fmt: skip
    tasks: dict[str, object] = {}

    def step(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
            bar.start()
        bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

    try:
        yield Told(
            say=lambda text: screen.print(text, highlight=False, markup=False, soft_wrap=True),
            step=step,
            ask=(lambda question: typer.confirm(question, default=True)) if there else None,
        )
    finally:
        bar.stop()
