"""Model sizes and token counts of a sweep's runs: which column holds them, and which runs are of one size.

Numbers may be written as `70M`, `1.5B`, `410000000` or `4.1e8`, or stand in a name (`pythia-70m`). Runs that differ by
less than 5 % are of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange.column_names import KEYS, one_file, words
from opmix_ray.exchange.columns import Ask
from opmix_ray.exchange.csv_table import CsvTable, is_missing, plain, read_count
from opmix_ray.laws.fit import LEAST_ROWS

SAME = 1.05  # ratio up to which sizes are the same
TREND = 3  # sizes from which a trend is read
NONE = "none"  # as the name of a column: runs of all sizes are one sweep
SHOWN = 6
WHAT = {"size": "model sizes", "tokens": "numbers of tokens"}
# Words of a column's name: one of the first is there, and no other than those of both.
NAMES = {
    "size": (
        "size sizes params param parameters model",
        "n num number of count non embedding total trainable name lm",
    ),
    "tokens": (
        "tokens",
        "n num number of count total train training trained seen consumed budget b bn m million "
        "millions billion billions",
    ),
}


def count_words(value: float) -> str:
    """`70M`, `1.5B`, `28.7K`, `512`."""
    for unit, least in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= least * 0.9995:
            return f"{value / least:.3g}{unit}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Scale:
    """A model size and a number of tokens; None where a sweep does not tell them apart."""

    size: float | None = None
    tokens: float | None = None

    def words(self) -> str:
        """For a person."""
        said = [] if self.size is None else [count_words(self.size)]
        return ", ".join(said + ([] if self.tokens is None else [f"{count_words(self.tokens)} tokens"]))

    def log(self) -> np.ndarray:
        """Logs of those that are told apart."""
        return np.log([value for value in (self.size, self.tokens) if value is not None])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"size": self.size, "tokens": self.tokens}


@dataclass(frozen=True)
class Scales:
    """Size and tokens (N,) of N runs, the same number for runs of one size; None where there is no such column."""

    size: np.ndarray | None = None
    tokens: np.ndarray | None = None

    def rows(self, index: np.ndarray) -> Scales:
        """Those of some runs."""
        return Scales(*(None if part is None else part[index] for part in (self.size, self.tokens)))

    def of(self, index: np.ndarray) -> Scale:
        """Of runs that are of one size."""
        return Scale(*(None if part is None else float(part[index[0]]) for part in (self.size, self.tokens)))

    def groups(self) -> list[np.ndarray]:
        """Places of the runs of every size, from the smallest."""
        parts = [part for part in (self.size, self.tokens) if part is not None]
        found = np.unique(np.column_stack(parts), axis=0, return_inverse=True)[1].ravel()
        return [np.flatnonzero(found == group) for group in range(found.max() + 1)]

    def words(self) -> str:
        """All sizes, and how many runs are of each."""
        groups = self.groups()
        said = ", ".join(f"{self.of(rows).words()} ({len(rows)} runs)" for rows in groups[:SHOWN])
        return said + (f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else "")

    def target(self, size: str | float | None, tokens: str | float | None) -> Scale:
        """What is asked for; the largest where nothing is. A size within 5 % of one that has runs is that one.

        Raises:
            UserError: no number, or one without a column.
        """
        found: list[float | None] = []
        for asked, own, what in ((size, self.size, "size"), (tokens, self.tokens, "tokens")):
            wanted = None if asked is None else read_count(str(asked))
            if asked is not None and (wanted is None or own is None):
                raise UserError(
                    "must be a number above 0" if wanted is None else f"the runs do not differ in {WHAT[what]}",
                    key=f"--target-{what}", value=asked, remedy="write it as 410M" if wanted is None else "drop it",
                )  # fmt: skip
            if wanted is not None and own is not None:
                close = float(own[np.abs(np.log(own / wanted)).argmin()])
                wanted = close if max(close / wanted, wanted / close) <= SAME else wanted
            found.append(wanted)
        if found[0] is None and self.size is not None:
            found[0] = float(self.size.max())
        if found[1] is None and self.tokens is not None:
            there = np.full(len(self.tokens), True) if self.size is None else self.size == found[0]
            found[1] = float((self.tokens[there] if there.any() else self.tokens).max())
        return Scale(*found)

    def is_there(self, target: Scale) -> bool:
        """Whether a run is of it."""
        return any(self.of(rows) == target for rows in self.groups())

    def order(self, target: Scale) -> list[np.ndarray]:
        """Places of the runs of every size: that with most runs, then from far to near, last the target if it has any.

        Raises:
            UserError: no other size with enough runs; too few for a trend where the target has none.
        """
        own = [rows for rows in self.groups() if self.of(rows) == target]
        others = [rows for rows in self.groups() if len(rows) >= LEAST_ROWS and self.of(rows) != target]
        pairs = [
            (p, t) for p, t in ((self.size, target.size), (self.tokens, target.tokens)) if p is not None and t
        ]
        least = TREND - 1 + sum(len(np.unique(part)) > 1 for part, _ in pairs)
        still = next((part for part, at in pairs if (part == part[0]).all() and part[0] != at), None)
        reason = None
        if own and not others:
            reason = (
                f"no other size has {LEAST_ROWS} runs",
                f"add runs of another size, or give {NONE} as the column",
            )
        elif not own and still is not None:
            reason = (
                f"all runs have {count_words(still[0])}, so no trend leads there",
                "add runs of that size",
            )
        elif not own and len(others) < least:
            reason = (
                f"no run is of it, and a trend needs {least} sizes with {LEAST_ROWS} runs",
                "add a run of that size",
            )
        if reason:
            key = "--target-size" if self.size is not None else "--target-tokens"
            raise UserError(f"{reason[0]}: {self.words()}", key=key, value=target.words(), remedy=reason[1])
        others.sort(key=lambda rows: -float(np.abs(self.of(rows).log() - target.log()).sum()))
        most = max(range(len(others)), key=lambda place: len(others[place]))
        return [others.pop(most), *others, *own]

    def notes(self, target: Scale) -> list[str]:
        """What is done, in words; with a warning where the target has no runs."""
        said = [f"sizes: {self.words()}; the mixture is for {target.words()}"]
        few = [rows for rows in self.groups() if len(rows) < LEAST_ROWS and self.of(rows) != target]
        said += [f"too few runs of {self.of(rows).words()} to use: {len(rows)}" for rows in few]
        if self.is_there(target):
            return said
        pairs = [
            (p, t) for p, t in ((self.size, target.size), (self.tokens, target.tokens)) if p is not None and t
        ]
        beyond = max(max(at / part.max(), part.min() / at) for part, at in pairs)
        far = f", {beyond:.3g} times beyond the runs" if beyond > 1 else ""
        return [
            *said,
            f"no run is of {target.words()}: its law is extrapolated from trends{far}; intervals hold a part of what "
            "that may miss, and even one run of that size helps",
        ]


def _column(table: CsvTable, name: str) -> np.ndarray:
    """A column as counts (N,), NaN where a cell is missing; those within 5 % of the next are one.

    Raises:
        UserError: a cell that is none.
    """
    found = []
    for line, cell in zip(table.lines, table.column(name), strict=True):
        value = np.nan if is_missing(cell) else read_count(cell)
        if value is None:
            raise UserError(
                f"line {line} holds no number above 0", file=table.path, key=name, value=cell,
                remedy="write for example 70M, 1.5B or 410000000",
            )  # fmt: skip
        found.append(value)
    values = np.array(found, dtype=np.float64)
    known = np.unique(values[np.isfinite(values)])
    for part in np.split(known, np.flatnonzero(known[1:] > SAME * known[:-1]) + 1) if len(known) else []:
        inside = (values >= part[0]) & (values <= part[-1])
        values[inside] = np.median(values[inside])
    return values


def _found(tables: Sequence[CsvTable], what: str) -> str | None:
    """A column that looks like one of sizes (or tokens), several of them with several runs each."""
    needed, allowed = (set(part.split()) for part in NAMES[what])
    for table in reversed(tables):
        for name in table.header:
            said = {word for word in words(name) if not word.isdigit()}
            both = [set(each.column(name)) for each in tables if name in each.header]
            if (
                not said & needed or said - needed - allowed or both[0] != both[-1]
            ):  # a domain, and its metric
                continue
            counts = [read_count(cell) or 0.0 for cell in table.column(name) if not is_missing(cell)]
            several = len(counts) > 0 and max(counts) > max(1.0, SAME * min(counts)) and min(counts) > 0
            if several and 2 * len(set(counts)) <= len(counts):  # values repeat, as those of a setting do
                return name
    return None


@dataclass(frozen=True)
class SizeColumns:
    """What is asked: columns of sizes and tokens (`none`: runs of all are one sweep), the target, who can answer."""

    size: str | None = None
    tokens: str | None = None
    target_size: str | float | None = None
    target_tokens: str | float | None = None
    ask: Ask | None = None


Columns = list[np.ndarray | None]


@dataclass(frozen=True)
class Sized:
    """The two tables without their columns of sizes, and sizes and tokens by row of either; None: not there."""

    ratios: CsvTable
    metrics: CsvTable
    by_ratios: Columns
    by_metrics: Columns
    keep_tokens: bool

    def of(self, mixtures: Sequence[int], metrics: Sequence[int]) -> Scales | None:
        """Scales of joined rows, given their places; tokens that the size determines do not count."""
        size, tokens = (
            own[list(metrics)] if own is not None else other[list(mixtures)] if other is not None else None
            for own, other in zip(self.by_metrics, self.by_ratios, strict=True)
        )
        if size is not None and tokens is not None and not self.keep_tokens:
            pairs = len(np.unique(np.column_stack([size, tokens]), axis=0))
            tokens = None if pairs == len(np.unique(size)) else tokens
        return None if size is None and tokens is None else Scales(size, tokens)

    def known(self, mixture: int, metric: int) -> bool:
        """Whether nothing is missing in a joined row."""
        parts = [(self.by_metrics, metric), (self.by_ratios, mixture)]
        return all(
            np.isfinite(column[row]) for columns, row in parts for column in columns if column is not None
        )


def take_sizes(ratios: CsvTable, metrics: CsvTable, asked: SizeColumns) -> Sized:
    """Find and read the columns of sizes and tokens; a run of `ratios` may have a line of metrics for every size.

    Raises:
        UserError: no such column, cells that are no counts, or several sizes of which nobody said what to do.
    """
    tables, names = [ratios, metrics], list[str | None]()
    silent = not (asked.size or asked.tokens or asked.target_size or asked.target_tokens)
    header = dict.fromkeys(name for table in tables for name in table.header if name)
    for what, given, wanted in (
        ("size", asked.size, asked.target_size), ("tokens", asked.tokens, asked.target_tokens)
    ):  # fmt: skip
        name = _found(tables, what) if given is None else None if given.lower() == NONE else given
        if name is not None and name not in header:
            raise UserError(
                "no such column",
                file=metrics.path,
                key=f"--{what}-column",
                value=name,
                remedy=nearest(name, header),
            )
        if name is None and wanted is not None:
            raise UserError(
                f"no column is seen to hold several {WHAT[what]}", file=metrics.path, key=f"--target-{what}",
                value=wanted, remedy=f"name it with --{what}-column",
            )  # fmt: skip
        names.append(name)
    for what, name in zip(WHAT, names, strict=True):
        if silent and name is not None:
            _ask(tables, name, what, asked.ask)
            break
    columns = [[_column(t, n) if n is not None and n in t.header else None for n in names] for t in tables]
    tables = [table.without(names) for table in tables]
    if any(column is not None for column in columns[1]):
        tables, columns[0] = _by_size(tables, columns)
    return Sized(tables[0], tables[1], columns[0], columns[1], asked.target_tokens is not None)


def _ask(tables: Sequence[CsvTable], name: str, what: str, ask: Ask | None) -> None:
    table = next(table for table in reversed(tables) if name in table.header)
    found = _column(table, name)
    said, largest = Scales(found[np.isfinite(found)]).words(), count_words(float(np.nanmax(found)))
    if ask is None or not ask(f"`{name}` holds {WHAT[what]}: {said}. Fit for {largest}?"):
        raise UserError(
            f"the runs have several {WHAT[what]}: {said}", file=table.path, key=name,
            remedy=f"give --target-{what} {largest}, or --{what}-column {NONE} to take them as one sweep",
        )  # fmt: skip


def _by_size(tables: list[CsvTable], columns: list[Columns]) -> tuple[list[CsvTable], Columns]:
    """Tables in which runs are named with their size, where one has several lines of metrics; and the ratios' sizes."""
    ratios, metrics = tables
    for group in KEYS:
        left, right = (next((n for n in table.header if n.lower() in group), None) for table in tables)
        if left is None or right is None or len(set(metrics.column(right))) == len(metrics.rows):
            continue
        ends, own = _ends(columns[1], len(metrics.rows)), columns[0]
        runs, same = [plain(run) for run in ratios.column(left)], one_file(ratios, metrics)
        if same or len(set(runs)) < len(runs):
            first = ends if same else _ends(own, len(runs))
        else:  # a line of ratios for every line of metrics
            place_of = {run: place for place, run in enumerate(runs)}
            partner = [place_of.get(plain(run)) for run in metrics.column(right)]
            places = [p for p in partner if p is not None]
            first = [end for end, p in zip(ends, partner, strict=True) if p is not None]
            rest = [p for p in range(len(runs)) if p not in set(places)]
            places, first, own = places + rest, first + [""] * len(rest), [None, None]
            lines = [ratios.lines[p] for p in places]
            ratios = replace(ratios, rows=[ratios.rows[p] for p in places], lines=lines)
        return [ratios.renamed(left, first), metrics.renamed(right, ends)], own
    return tables, columns[0]


def _ends(columns: Columns, rows: int) -> list[str]:
    """What is put behind the name of every row's run."""
    known = [column for column in columns if column is not None]
    return ["".join(f" at {count_words(column[row])}" for column in known) for row in range(rows)]
