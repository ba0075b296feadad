"""`opmix design`: which mixtures a sweep should train."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix_ray.commands.options import Json
from opmix_ray.errors import UserError

if TYPE_CHECKING:
    from opmix_ray.mixture import Mixture


def design(
    domains: Annotated[
        list[str],
        typer.Option(help="Names, separated by commas.", metavar="NAMES", show_default=False),
    ],
    runs: Annotated[int, typer.Option(help="How many mixtures.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.", show_default=False)],
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
    from opmix_ray.commands.show import show
    from opmix_ray.fit.columns import METADATA
    from opmix_ray.fit.options import limits, read_prior
    from opmix_ray.strategies.design import check_names, check_sweep, designed

    names = [name.strip() for given in domains for name in given.split(",")]
    check_names(names, sorted(METADATA))
    lower, upper, tokens = limits(bounds, caps, names)
    if output.exists():
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
    _write(output, names, called, found)
    rows = [{"run": run, **{name: round(share, 4) for name, share in row.items()}}
            for run, row in zip(called, found, strict=True)]  # fmt: skip
    if not as_json:
        show(rows, rows, False)
    fitting = f"opmix fit --ratios {output} --metrics METRICS.csv"
    few = (
        f"note: {runs} runs for {len(names)} domains; of some the law will know little\n"
        if runs < len(names)
        else ""
    )
    words = f"{few}{output}\nnext: train one model on each, write their metrics down by run, then {fitting}"
    show({"output": str(output), "runs": rows}, words, as_json)


def _earlier(file: Path | None, names: Sequence[str]) -> tuple[list[Mixture], list[str]]:
    """Mixtures that are trained already, and the names of their runs."""
    if file is None:
        return [], []
    from opmix_ray.exchange.csv_table import read_csv
    from opmix_ray.fit.sweep import read_mixtures
    from opmix_ray.laws.base import nearest
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


def _write(output: Path, names: Sequence[str], runs: Sequence[str], rows: Sequence[Mixture]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *names])
    for run, row in zip(runs, rows, strict=True):
        writer.writerow([run, *(f"{row[name]:.9g}" for name in names)])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", key="--output", value=output, remedy="name another file"
        ) from None
