"""Somebody's sweep: `opmix design` says which mixtures to train, `opmix fit` and `opmix predict` make a law of them."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix_ray.commands.options import Json, Output, console, show
from opmix_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from opmix_ray.fit import Told
    from opmix_ray.mixture import Mixture


def design(
    domains: Annotated[
        list[str],
        typer.Option(help="Names, separated by commas.", metavar="NAMES", show_default=False),
    ],
    runs: Annotated[int, typer.Option(help="How many mixtures.", show_default=False)],
    output: Annotated[
        str, typer.Option("--output", "-o", help="CSV to write, local or a URI.", show_default=False)
    ],
    bounds: Annotated[Path | None, typer.Option(help="File of [least, greatest] shares.")] = None,
    caps: Annotated[
        Path | None, typer.Option(help="File of greatest shares, or of tokens and epochs.")
    ] = None,
    near: Annotated[
        str | None,
        typer.Option(
            help="Mixture to stay near: a file such as mixture.json of `opmix fit`, uniform or proportional; "
            "none: all mixtures are of interest.",
            metavar="MIXTURE",
        ),
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option(help="CSV of mixtures trained already, which these complement.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Choose the mixtures of a sweep: few that tell much.

    Train each, then give the file and the metrics to `opmix fit`.
    """
    from opmix_ray.exchange.columns import METADATA
    from opmix_ray.fit.options import limits, read_prior
    from opmix_ray.storage import split_file
    from opmix_ray.strategies.design import check_names, check_sweep, designed

    names = [name.strip() for given in domains for name in given.split(",")]
    check_names(names, sorted(METADATA))
    lower, upper, tokens = limits(bounds, caps, names)
    place, file = split_file(output)
    if not file or place.exists(file):
        raise UserError("is there already", key="--output", value=output, remedy="name another file")
    try:
        centre = read_prior(near, names, tokens)
    except UserError as error:
        key = "--near" if error.key == "--prior" else error.key
        raise UserError(
            error.problem, file=error.file, key=key, value=error.value, remedy=error.remedy
        ) from None
    before, runs_before = _earlier(earlier, names)
    check_sweep(runs, centre, lower, upper, near=near, bounds=bounds, caps=caps)
    found = designed(
        runs, centre, lower=lower, upper=upper, near=near is not None, earlier=before, seed=seed
    )  # fmt: skip
    called = _run_names(len(found), runs_before)
    place.write_text(file, _table(names, called, found))
    rows = [{"run": run, **{name: round(share, 4) for name, share in row.items()}}
            for run, row in zip(called, found, strict=True)]  # fmt: skip
    if not as_json:
        show(rows, rows, False)
    fitting = f"opmix fit --ratios {output} --metrics METRICS.csv"
    notes = [
        f"{near} gives `{name}` nothing, so hardly any run has some of it"
        for name in names
        if not centre[name]
    ]
    if runs < len(names):
        notes.append(f"{runs} runs for {len(names)} domains; of some the law will know little")
    said = "".join(f"note: {note}\n" for note in notes)
    words = f"{said}{output}\nnext: train one model on each, write their metrics down by run, then {fitting}"
    show({"output": output, "runs": rows, "notes": notes}, words, as_json)


def _earlier(file: Path | None, names: Sequence[str]) -> tuple[list[Mixture], list[str]]:
    """Mixtures that are trained already, and the names of their runs."""
    if file is None:
        return [], []
    from opmix_ray.exchange.csv_table import read_csv
    from opmix_ray.fit.sweep import read_mixtures
    from opmix_ray.mixture import Mixture

    table = read_csv(file)
    found = read_mixtures(table)
    for name in found.domains:
        if name not in names:
            raise UserError("is no domain of this design", file=file, key=name, remedy=nearest(name, names))
    if not found.rows:
        raise UserError(
            f"no line holds a mixture; the first: {found.left_out[0].reason}", file=file, key="--earlier",
            remedy="give shares that sum to 1",
        )  # fmt: skip
    mixtures = [Mixture.from_array(found.domains, row).over(names) for row in found.shares]
    return mixtures, [cell for row in table.rows for cell in row]


def _run_names(count: int, taken: Sequence[str]) -> list[str]:
    """Names that no earlier run has."""
    used, number = set(taken), 0
    found: list[str] = []
    while len(found) < count:
        name = f"run-{number:03d}"
        number += 1
        if name not in used:
            found.append(name)
    return found


def _table(names: Sequence[str], runs: Sequence[str], rows: Sequence[Mixture]) -> str:
    """CSV with a line for every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *names])
    for run, row in zip(runs, rows, strict=True):
        writer.writerow([run, *(f"{row[name]:.9g}" for name in names)])
    return text.getvalue()


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

    if Path(output or "").is_file():
        raise UserError("is a file", key="--output", value=output, remedy="name a directory")
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
    words = {key: value for key, value in found.items() if key not in ("notes", "left_out")}
    if found["left_out"]:
        words["left out"] = "; ".join(f"line {row['line']}: {row['reason']}" for row in found["left_out"])
    if found["notes"]:
        words["notes"] = "; ".join(found["notes"])
    show(found, words, as_json)


@contextmanager
def _told(as_json: bool) -> Iterator[Told]:
    """What a person sees while a sweep is fitted: lines on the output, on a terminal a bar with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
