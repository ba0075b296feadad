"""Two CSV files as one sweep: mixtures and metrics joined by run, and a word on every row left out.

Reads olmix's files (`run` or `run_id`, `name`, `index`, then one column per source; the same, then metrics) and
RegMix's (`index`, then columns) as they are. Which of the other columns are domains and metrics: `columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from opmix_ray.draw.numbers import plural
from opmix_ray.errors import UserError
from opmix_ray.exchange.column_names import (
    KEYS,
    by_seed,
    join_columns,
    keyed,
    one_file,
    partners,
    run_names,
    wide,
)  # fmt: skip
from opmix_ray.exchange.columns import (
    ROUNDING,
    Column,
    Taken,
    hold_shares,
    metric_columns,
    not_in,
    rounding,
    share_columns,
    unfinished,
)
from opmix_ray.exchange.csv_table import CsvTable, plain, read_csv
from opmix_ray.fit.sizes import Scales, SizeColumns, take_sizes
from opmix_ray.laws.fit import LARGEST, LEAST_ROWS

MOST_SHARES = 1.5  # sum from which numbers that are said to be shares may be tokens
SHOWN = 3  # reasons that an error gives
LEFT_OUT = "left out of "  # how a note on columns begins
SAME = 1e-3  # shares that differ by less are the same mixture


@dataclass(frozen=True)
class LeftOut:
    """A row that is not in the fit, and why."""

    run: str
    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Mixtures:
    """Mixtures of a file.

    Args:
        table: the file.
        domains: D column names.
        rows: places in the table, N of them.
        shares: (N, D), rows sum to 1.
        left_out: the other rows.
        notes: what was done to the file, in words.
        columns: which columns are shares, and which are not.
    """

    table: CsvTable
    domains: list[str]
    rows: list[int]
    shares: np.ndarray
    left_out: list[LeftOut]
    notes: list[str]
    columns: Taken


@dataclass(frozen=True)
class Sweep:
    """Rows that hold a mixture and at least one metric.

    Args:
        runs: N names of the runs.
        ratios: (N, D) shares of training tokens.
        metrics: (N, M); NaN where a value is missing.
        domains, metric_names: D and M names, as in the files.
        left_out: rows that are not in here.
        notes: what was done to the files, in words.
        unused: domains of the files that no row has; they are not among the others.
        left_out_columns: columns that were neither taken as shares nor as metrics.
        scales: model size and tokens of the runs, where they differ.
    """

    runs: list[str]
    ratios: np.ndarray
    metrics: np.ndarray
    domains: list[str]
    metric_names: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    left_out_columns: list[Column] = field(default_factory=list)
    scales: Scales | None = None


def read_sweep(
    ratios: str | Path,
    metrics: str | Path,
    *,
    share_names: Sequence[str] | None = None,
    metric_names: Sequence[str] | None = None,
    sizes: SizeColumns | None = None,
) -> Sweep:
    """Read and join the two files of a sweep.

    Args:
        ratios, metrics: the files.
        share_names, metric_names: columns that are shares and metrics, as names or patterns; None: found out.
        sizes: what is said about model sizes and tokens; None: nothing, so runs of several are refused.

    Raises:
        UserError: a file is broken, they share no column to join by, fewer than 3 runs or mixtures are left, no
            metric varies, or runs are of several model sizes.
    """
    tables = by_seed(*keyed(wide(read_csv(ratios)), wide(read_csv(metrics))))
    sized = take_sizes(*tables, sizes or SizeColumns())
    mixtures_table, metrics_table = sized.ratios, sized.metrics
    keys = join_columns(mixtures_table, metrics_table) or (None, None)
    found = read_mixtures(mixtures_table, keys[0], share_names)
    taken = metric_columns(metrics_table, metric_names, found.domains)
    left_out, notes = list(found.left_out), list(found.notes)
    mixture_runs, metric_runs = run_names(mixtures_table, keys[0]), run_names(metrics_table, keys[1])
    partner = partners(mixture_runs, metric_runs)
    joined = set(partner)
    for place, run in enumerate(metric_runs):
        if place not in joined:
            left_out.append(_left(metrics_table, place, run, not_in(run, mixture_runs, mixtures_table)))
    taken = _without_shares(taken, found, metrics_table, partner)
    measured, said = _measured(metrics_table, taken)
    notes += said
    kept, places = [], []
    for row, place in enumerate(found.rows):
        run = mixture_runs[place]
        there = partner[place]
        if there is None:
            left_out.append(_left(mixtures_table, place, run, not_in(run, metric_runs, metrics_table)))
        elif (state := unfinished(metrics_table, there) or unfinished(mixtures_table, place)) is not None:
            left_out.append(_left(metrics_table, there, run, state))
        elif not np.isfinite(measured[there]).any():
            left_out.append(_left(metrics_table, there, run, "none of its metrics is a number"))
        elif not sized.known(place, there):
            left_out.append(_left(metrics_table, there, run, "its size is missing"))
        else:
            kept.append(row)
            places.append(there)
    if len(kept) < LEAST_ROWS:
        raise _too_few(len(kept), mixtures_table, left_out, hold_shares(metrics_table))
    sweep = Sweep(
        runs=[plain(mixture_runs[found.rows[row]]) for row in kept],
        ratios=found.shares[kept],
        metrics=measured[places],
        domains=found.domains,
        metric_names=taken.names,
        left_out=left_out,
        notes=notes,
        left_out_columns=_in_neither(found.columns, taken, one_file(mixtures_table, metrics_table)),
        scales=sized.of([found.rows[row] for row in kept], places),
    )
    sweep = _without_unused(_without_thin_metrics(sweep, metrics_table))
    check_varies(sweep, mixtures_table.path, metrics_table.path)
    return replace(sweep, notes=[*_column_notes(sweep.left_out_columns), *dict.fromkeys(sweep.notes)])


def read_mixtures(table: CsvTable, key: str | None = None, wanted: Sequence[str] | None = None) -> Mixtures:
    """The mixtures of a file; rows that are none are left out with a reason.

    Args:
        table: the file.
        key: column that names the runs; none: the first one there is, else the line number.
        wanted: columns of shares, as names or patterns; None: found out.

    Raises:
        UserError: no column holds shares.
    """
    key = key or next((name for group in KEYS for name in table.header if name.lower() in group), None)
    notes = list(table.notes)
    taken = share_columns(table, wanted)
    domains = taken.names
    if any(table.notation_of(name).decimal_comma for name in domains):
        notes.append(f"commas in the numbers of {table.path.name} were read as decimal commas")
    columns = [table.numbers(name) for name in domains]
    numbers = np.array([[np.nan if v is None else v for v in column] for column in columns]).T
    sums = np.nansum(numbers, axis=1)
    room = max(ROUNDING, rounding(numbers, sums))
    per_cent = np.abs(sums - 100) <= 100 * room
    whole = per_cent | (np.abs(sums - 1) <= room)
    counted = taken.asked and not whole.any() and bool((sums > MOST_SHARES).any())
    unit = np.where(per_cent, 100.0, np.where(counted & (sums > 0), sums, 1.0))
    if counted:
        notes.append(
            f"no row of {table.path.name} sums to 1 or 100: taken as tokens, each divided by its sum"
        )
    if per_cent.any():
        which = "the rows" if per_cent.all() else plural(int(per_cent.sum()), "row")
        notes.append(f"read as per cent: {which} of {table.path.name}, for a sum of 100")
    runs = run_names(table, key)
    rows, shares, left_out, rounded = [], [], [], []
    for place, row in enumerate(zip(*columns, strict=True)):
        values = numbers[place] / unit[place]
        reason = _no_mixture(row, values, domains, table.rows[place], table.header, room)
        if reason is not None:
            left_out.append(_left(table, place, plain(runs[place]), reason))
            continue
        values = np.nan_to_num(values)
        if abs(values.sum() - 1) > 1e-5:
            rounded.append(float(values.sum()))
        rows.append(place)
        shares.append(values / values.sum())
    if rounded:
        least, most = f"{min(rounded):.4g}", f"{max(rounded):.4g}"
        notes.append(
            f"divided by their sum: {plural(len(rounded), 'row')} of {table.path.name}, for sums of {least}"
            + (f" to {most}" if most != least else "")
        )
    return Mixtures(
        table, domains, rows, np.array(shares).reshape(len(rows), len(domains)), left_out, notes, taken
    )


def _no_mixture(
    row: tuple[float | None, ...],
    values: np.ndarray,
    domains: list[str],
    cells: list[str],
    header: list[str],
    room: float,
) -> str | None:
    """Why a row is no mixture, or None. An empty cell is a share of 0 where the rest sums to 1."""
    for name, value in zip(domains, row, strict=True):
        if value is None:
            return f"`{name}` is not a number: {cells[header.index(name)][:40]}"
        if value < 0:
            return f"the share of `{name}` is below 0: {value:g}"
        if np.isinf(value):
            return f"the share of `{name}` is infinite"
    total = float(np.nansum(values))
    if abs(total - 1) > room:
        empty = [name for name, value in zip(domains, values, strict=True) if np.isnan(value)]
        where = f" without {', '.join(f'`{name}`' for name in empty[:SHOWN])}" if empty else ""
        return f"its shares sum to {total:.4g}{where}, not to 1"
    return None


def _without_shares(taken: Taken, found: Mixtures, table: CsvTable, partner: Sequence[int | None]) -> Taken:
    """The metrics without columns that repeat the shares: those of this very file, or of another by name and values.

    Shares are the same in whatever unit and however rounded: a loss is not in proportion to a domain's share.

    Raises:
        UserError: nothing else is left.
    """
    rows = [(place, there) for place in found.rows if (there := partner[place]) is not None]
    if taken.asked or not rows:
        return taken
    one = one_file(found.table, table)

    def repeats(name: str) -> bool:
        if name not in found.domains:
            return False
        if one:
            return True
        pairs = np.array(
            [table.values(name)[[o for _, o in rows]], found.table.values(name)[[h for h, _ in rows]]]
        )
        again, shares = np.nan_to_num(pairs)
        unit = again.sum() / shares.sum() if shares.any() else 0.0
        return bool(
            unit > 0 and np.allclose(again, unit * shares, rtol=0.0, atol=unit * ROUNDING * shares.max())
        )

    gone = [
        Column(table.path.name, name, "it holds the shares of that domain")
        for name in taken.names
        if repeats(name)
    ]
    repeated = {column.name for column in gone}
    names, left_out = [n for n in taken.names if n not in repeated], [*taken.left_out, *gone]
    if not names:
        said = "; ".join(f"`{column.name}`: {column.reason}" for column in left_out[:SHOWN])
        raise UserError(
            f"no column holds a metric ({said})",
            file=table.path,
            remedy="give one column of numbers per metric",
        )
    return Taken(names, left_out)


def _in_neither(shares: Taken, metrics: Taken, one: bool) -> list[Column]:
    """Columns that were not taken; those of one file once, and only if they are neither shares nor metrics."""
    columns = [*shares.left_out, *metrics.left_out]
    if not one:
        return columns
    taken = {*shares.names, *metrics.names}
    return list({column.name: column for column in columns if column.name not in taken}.values())


def _measured(table: CsvTable, taken: Taken) -> tuple[np.ndarray, list[str]]:
    """Values (rows, M) and notes."""
    columns, notes = [], list(table.notes)
    for name in taken.names:
        found = table.numbers(name)
        wrong = [line for line, value in zip(table.lines, found, strict=True) if value is None]
        if wrong:
            lines = ", ".join(map(str, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
            notes.append(f"`{name}` in {table.path.name} is not a number in line {lines}: taken as missing")
        if name == "objective":
            raise UserError(
                "a metric cannot be called `objective`", file=table.path, key=name, remedy="rename it"
            )
        if large := sum(value is not None and abs(value) > LARGEST for value in found):
            notes.append(f"{large} values of `{name}` are infinite or above {LARGEST:g}: taken as missing")
        columns.append([np.nan if value is None or abs(value) > LARGEST else value for value in found])
    if any(table.notation_of(name).decimal_comma for name in taken.names):
        notes.append(f"commas in the numbers of {table.path.name} were read as decimal commas")
    if percent := [name for name in taken.names if table.notation_of(name).percent]:
        notes.append(f"per cent in {', '.join(f'`{n}`' for n in percent[:SHOWN])} was read as parts of 1")
    return np.array(columns, dtype=np.float64).T, notes


def _column_notes(columns: Sequence[Column]) -> list[str]:
    """Columns left out for the same reason, in one line."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        by_reason.setdefault((column.file, column.reason), []).append(column.name)
    return [
        f"{LEFT_OUT}{file}: {', '.join(f'`{name}`' for name in names)}: {reason}"
        for (file, reason), names in by_reason.items()
    ]


def _without_unused(sweep: Sweep) -> Sweep:
    """Without the domains that no run has: nothing is known of them, so they have no say."""
    used = np.asarray((sweep.ratios > 0).any(axis=0)).tolist()
    unused = [name for name, there in zip(sweep.domains, used, strict=True) if not there]
    return replace(
        sweep,
        ratios=sweep.ratios[:, used],
        domains=[name for name in sweep.domains if name not in unused],
        unused=unused,
        notes=sweep.notes + [f"`{name}` is 0 in every run, so the proposal leaves it out" for name in unused],
    )


def check_varies(sweep: Sweep, ratios: Path, metrics: Path) -> None:
    """Refuse a sweep of one mixture, or of metrics that are the same everywhere."""
    spread = np.ptp(sweep.ratios, axis=0)
    if spread.max() < SAME:
        raise UserError(
            f"all {len(sweep.runs)} runs have the same mixture, so nothing is known about any other",
            file=ratios,
            remedy="add runs on other mixtures",
        )
    different = len(np.unique(np.round(sweep.ratios, 6), axis=0))
    if different < LEAST_ROWS:
        raise UserError(
            f"the {len(sweep.runs)} runs have {different} different mixtures, a law needs at least {LEAST_ROWS}",
            file=ratios,
            remedy="add runs on other mixtures",
        )
    if not any(np.ptp(column[np.isfinite(column)]) > 0 for column in sweep.metrics.T):
        raise UserError(
            "every metric is the same in all runs, so no mixture is better than another",
            file=metrics,
            remedy="give metrics that were measured run by run",
        )


def _without_thin_metrics(sweep: Sweep, table: CsvTable) -> Sweep:
    counts = np.isfinite(sweep.metrics).sum(axis=0)
    full = counts >= LEAST_ROWS
    if not full.any():
        raise UserError(
            f"no metric has a value in {LEAST_ROWS} rows", file=table.path, remedy="add runs or values"
        )
    notes = [
        f"metric `{name}` has {count} values, fewer than {LEAST_ROWS}, and was not used"
        for name, count in zip(sweep.metric_names, counts, strict=True)
        if count < LEAST_ROWS
    ]
    rows = np.isfinite(sweep.metrics[:, full]).any(axis=1)
    gone = [
        LeftOut(run, table.path.name, 0, "none of the metrics used is a number")
        for run, there in zip(sweep.runs, rows, strict=True)
        if not there
    ]
    return replace(
        sweep,
        runs=[run for run, there in zip(sweep.runs, rows, strict=True) if there],
        ratios=sweep.ratios[rows],
        metrics=sweep.metrics[np.ix_(rows, full)],
        metric_names=[name for name, there in zip(sweep.metric_names, full, strict=True) if there],
        scales=None if sweep.scales is None else sweep.scales.rows(rows),
        left_out=sweep.left_out + gone,
        notes=sweep.notes + notes,
    )


def _left(table: CsvTable, place: int, run: str, reason: str) -> LeftOut:
    return LeftOut(plain(run), table.path.name, table.lines[place], reason)


def _too_few(kept: int, table: CsvTable, left_out: list[LeftOut], swapped: bool) -> UserError:
    reasons = "; ".join(f"run {item.run}: {item.reason}" for item in left_out[:SHOWN])
    more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return UserError(
        f"only {kept} runs have a mixture and a metric, a law needs at least {LEAST_ROWS}"
        + (f"; left out: {reasons}{more}" if left_out else ""),
        file=table.path,
        remedy="check that both files name the same runs"
        if not left_out or not all(" sum to " in item.reason for item in left_out)
        else "the files of --ratios and --metrics look swapped"
        if swapped
        else "name columns that count tokens with --share-columns, or divide each line by its sum",
    )
