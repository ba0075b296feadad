"""Two CSV files as one sweep: mixtures and metrics joined by run, and a word on every row left out.

Reads olmix's files (`run` or `run_id`, `name`, `index`, then one column per source; the same, then metrics) and
RegMix's (`index`, then columns) as they are. Every other column of numbers is a domain, or a metric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.fit.csv_table import CsvTable, is_missing, is_text, number, read_csv
from opmix_ray.laws.fit import LEAST_ROWS

KEYS = (("run", "run_id"), ("index",), ("name",))  # what rows are joined by, the best first
METADATA = frozenset({"run", "run_id", "name", "index", "", "unnamed: 0"})
ROUNDING = 0.01  # how far a row's sum may be from 1 and still be a mixture with rounded shares
SHOWN = 3  # reasons that an error gives


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
    """

    table: CsvTable
    domains: list[str]
    rows: list[int]
    shares: np.ndarray
    left_out: list[LeftOut]
    notes: list[str]


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
    """

    runs: list[str]
    ratios: np.ndarray
    metrics: np.ndarray
    domains: list[str]
    metric_names: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_sweep(ratios: str | Path, metrics: str | Path) -> Sweep:
    """Read and join the two files of a sweep.

    Raises:
        UserError: a file is broken, they share no column to join by, or fewer than 3 runs are left.
    """
    mixtures_table, metrics_table = read_csv(ratios), read_csv(metrics)
    keys = _keys(mixtures_table, metrics_table)
    mixtures = read_mixtures(mixtures_table, keys[0])
    left_out, notes = list(mixtures.left_out), list(mixtures.notes)
    names, values, said = _metric_columns(metrics_table)
    notes += said
    mixture_runs = [_canonical(cell) for cell in mixtures_table.column(keys[0])]
    metric_runs = [_canonical(cell) for cell in metrics_table.column(keys[1])]
    place_of = {run: place for place, run in enumerate(metric_runs)}
    known = set(mixture_runs)
    for place, run in enumerate(metric_runs):
        if run not in known:
            left_out.append(_left(metrics_table, place, run, f"not in {mixtures_table.path.name}"))
    kept, places = [], []
    for row, place in enumerate(mixtures.rows):
        run = mixture_runs[place]
        there = place_of.get(run)
        if there is None:
            left_out.append(_left(mixtures_table, place, run, f"not in {metrics_table.path.name}"))
        elif not np.isfinite(values[there]).any():
            left_out.append(_left(metrics_table, there, run, "none of its metrics is a number"))
        else:
            kept.append(row)
            places.append(there)
    if len(kept) < LEAST_ROWS:
        raise _too_few(len(kept), mixtures_table, left_out)
    sweep = Sweep(
        runs=[mixture_runs[mixtures.rows[row]] for row in kept],
        ratios=mixtures.shares[kept],
        metrics=values[places],
        domains=mixtures.domains,
        metric_names=names,
        left_out=left_out,
        notes=notes,
    )
    return _without_thin_metrics(sweep, metrics_table)


def read_mixtures(table: CsvTable, key: str | None = None) -> Mixtures:
    """The mixtures of a file; rows that are none are left out with a reason.

    Args:
        table: the file.
        key: column that names the runs; none: the first one there is, else the line number.

    Raises:
        UserError: no column holds shares.
    """
    key = key or next((name for group in KEYS for name in table.header if name.lower() in group), None)
    notes = []
    domains = []
    for name in table.header:
        if name.lower() in METADATA:
            continue
        if is_text(table.column(name)):
            notes.append(f"column `{name}` of {table.path.name} holds words and was not used")
        else:
            domains.append(name)
    if not domains:
        raise UserError(
            "no column holds shares", file=table.path, remedy="give one column of numbers per domain"
        )
    columns = [[number(cell) for cell in table.column(name)] for name in domains]
    sums = [
        sum(value for value in row if value is not None and value == value)
        for row in zip(*columns, strict=True)
    ]
    unit = 100.0 if abs(float(np.median(sums)) - 100) < 100 * ROUNDING else 1.0
    if unit != 1:
        notes.append(f"the rows of {table.path.name} sum to 100 and were read as per cent")
    runs = table.column(key) if key is not None else [f"line {line}" for line in table.lines]
    rows, shares, left_out, rounded = [], [], [], []
    for place, row in enumerate(zip(*columns, strict=True)):
        values = np.array([np.nan if value is None else value for value in row]) / unit
        reason = _no_mixture(row, values, domains, table.rows[place], table.header)
        if reason is not None:
            left_out.append(_left(table, place, _canonical(runs[place]), reason))
            continue
        values = np.nan_to_num(values)
        if abs(values.sum() - 1) > 1e-6:
            rounded.append(float(values.sum()))
        rows.append(place)
        shares.append(values / values.sum())
    if rounded:
        notes.append(
            f"{len(rounded)} rows of {table.path.name} sum to {min(rounded):.4g} to {max(rounded):.4g}; "
            "they were divided by their sum"
        )
    return Mixtures(table, domains, rows, np.array(shares).reshape(len(rows), len(domains)), left_out, notes)


def _no_mixture(
    row: tuple[float | None, ...], values: np.ndarray, domains: list[str], cells: list[str], header: list[str]
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
    if abs(total - 1) > ROUNDING:
        empty = [name for name, value in zip(domains, values, strict=True) if np.isnan(value)]
        where = f" without {', '.join(f'`{name}`' for name in empty[:SHOWN])}" if empty else ""
        return f"its shares sum to {total:.4g}{where}, not to 1"
    return None


def _keys(ratios: CsvTable, metrics: CsvTable) -> tuple[str, str]:
    """The column of each file to join by: the first kind that both have and that names every row once."""
    doubled: UserError | None = None
    for group in KEYS:
        pair = [
            next((name for wanted in group for name in table.header if name.lower() == wanted), None)
            for table in (ratios, metrics)
        ]
        if pair[0] is None or pair[1] is None:
            continue
        faults = [_doubled(ratios, pair[0]), _doubled(metrics, pair[1])]
        if not any(faults):
            return pair[0], pair[1]
        doubled = doubled or next(fault for fault in faults if fault)
    if doubled:
        raise doubled
    raise UserError(
        f"shares no column with {metrics.path.name} to join runs by",
        file=ratios.path,
        remedy="give both files a column `run` (or `run_id`, `index`, `name`)",
    )


def _doubled(table: CsvTable, key: str) -> UserError | None:
    first: dict[str, int] = {}
    for line, cell in zip(table.lines, table.column(key), strict=True):
        run = _canonical(cell)
        if is_missing(cell):
            return UserError(f"line {line} names no run", file=table.path, key=key, remedy="fill it in")
        if run in first:
            return UserError(
                f"lines {first[run]} and {line} are the same run",
                file=table.path,
                key=key,
                value=run,
                remedy="keep one line per run",
            )
        first[run] = line
    return None


def _canonical(cell: str) -> str:
    """A run's name: whole numbers without a decimal point, so that 7 and 7.0 are the same."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else cell


def _metric_columns(table: CsvTable) -> tuple[list[str], np.ndarray, list[str]]:
    """Names (M), values (rows, M) and notes."""
    names, columns, notes = [], [], []
    for name in table.header:
        if name.lower() in METADATA:
            continue
        cells = table.column(name)
        if is_text(cells):
            notes.append(f"column `{name}` of {table.path.name} holds words and was not used")
            continue
        values = [number(cell) for cell in cells]
        wrong = [line for line, value in zip(table.lines, values, strict=True) if value is None]
        if wrong:
            lines = ", ".join(map(str, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
            notes.append(f"`{name}` in {table.path.name} is not a number in line {lines}: taken as missing")
        if name == "objective":
            raise UserError(
                "a metric cannot be called `objective`", file=table.path, key=name, remedy="rename it"
            )
        names.append(name)
        columns.append([np.nan if value is None or np.isinf(value) else value for value in values])
    if not names:
        raise UserError(
            "no column holds a metric", file=table.path, remedy="give one column of numbers per metric"
        )
    return names, np.array(columns, dtype=np.float64).T, notes


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
    return Sweep(
        runs=[run for run, there in zip(sweep.runs, rows, strict=True) if there],
        ratios=sweep.ratios[rows],
        metrics=sweep.metrics[np.ix_(rows, full)],
        domains=sweep.domains,
        metric_names=[name for name, there in zip(sweep.metric_names, full, strict=True) if there],
        left_out=sweep.left_out + gone,
        notes=sweep.notes + notes,
    )


def _left(table: CsvTable, place: int, run: str, reason: str) -> LeftOut:
    return LeftOut(run, table.path.name, table.lines[place], reason)


def _too_few(kept: int, table: CsvTable, left_out: list[LeftOut]) -> UserError:
    reasons = "; ".join(f"run {item.run}: {item.reason}" for item in left_out[:SHOWN])
    more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return UserError(
        f"only {kept} runs have a mixture and a metric, a law needs at least {LEAST_ROWS}"
        + (f"; left out: {reasons}{more}" if left_out else ""),
        file=table.path,
        remedy="check that both files name the same runs",
    )
