"""Model sizes and token counts of a sweep's runs: which column holds them, and which runs are of one size.

Numbers may be written as `70M`, `1.5B`, `410000000` or `4.1e8`, or stand in a name (`pythia-70m`). Runs that differ by
less than 5 % are of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange.column_names import (
    AREAS,
    COUNTED,
    KEYS,
    RUN_WORDS,
    UNITS_OF,
    bookkeeping,
    is_metric,
    one_file,
    repeated,
    set_of,
    words,
)
from opmix_ray.exchange.columns import METADATA, Ask
from opmix_ray.exchange.csv_table import CsvTable, is_missing, plain, read_count
from opmix_ray.laws.fit import LEAST_ROWS

SAME = 1.05  # ratio up to which sizes are the same
TREND = 3  # sizes from which a trend is read
NONE = "none"  # as the name of a column: runs of all sizes are one sweep
SHOWN = 6
WHAT = {"size": "model sizes", "tokens": "numbers of tokens"}
FAR = 1000  # times from all runs beyond which a target is a slip
# Words of a column's name: one of the first is there, and no other than those of both, of settings and of units.
NAMES = {
    "size": (
        "size sizes params param parameters parameter model nparams numparams modelsize modelparams totalparams scale "
        "arch architecture backbone",
        "n num number of count non nonembedding embedding emb total trainable active name lm base type "
        "variant family preset in network",
    ),
    "tokens": (
        "tokens token ntokens numtokens traintokens totaltokens",
        "n num number of count total train trained training seen consumed budget in",
    ),
}
UNSURE = {
    "model",
    "scale",
    "arch",
    "architecture",
    "backbone",
}  # alone these name sizes only by large numbers, or with a unit
LARGE = 1e5
LETTERS = {"size": "n", "tokens": "d"}  # of scaling laws
# Names with these hold other things of which there may be 10M.
OTHERS = set_of(
    "batch vocab vocabulary token tokens context ctx seq sequence length len data dataset datasets corpus docs memory "
    "documents examples samples mem gpu cache buffer budget flops step steps mix mixture domain source"
)
# Words of columns of an architecture: one of the first is there.
SHAPE = (
    set_of(
        "layers layer nlayers nlayer depth width hidden dim dims dmodel dff embd embed embedding ff ffn mlp blocks "
        "intermediate feedforward"
    ),
    set_of("n num number of d size sizes model emb transformer decoder encoder lm total"),
)


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
    key: str = field(default="--target-size", compare=False)  # the option that asked for it

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
        size, tokens = (None if part is None else float(part[index[0]]) for part in (self.size, self.tokens))
        return Scale(size, tokens)

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
                away = max(close / wanted, wanted / close)
                if away > FAR * SAME:
                    raise UserError(
                        f"is {away:.3g} times from all runs: {self.words()}", key=f"--target-{what}", value=asked,
                        remedy=_slip(wanted, close),
                    )  # fmt: skip
                wanted = close if away <= SAME else wanted
            found.append(wanted)
        if found[0] is None and self.size is not None:
            found[0] = float(self.size.max())
        if found[1] is None and self.tokens is not None:
            there = np.full(len(self.tokens), True) if self.size is None else self.size == found[0]
            found[1] = float((self.tokens[there] if there.any() else self.tokens).max())
        other = self.size is None or (size is None and tokens is not None)
        return Scale(found[0], found[1], "--target-tokens" if other else "--target-size")

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
            raise UserError(
                f"{reason[0]}: {self.words()}", key=target.key, value=target.words(), remedy=reason[1]
            )
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


def _slip(wanted: float, close: float) -> str:
    """The remedy for a target far from all runs: mostly a unit was forgotten."""
    meant = min((wanted * 1000.0**power for power in range(-3, 4)), key=lambda v: abs(np.log(v / close)))
    near = max(meant / close, close / meant) <= FAR**0.5
    return (
        f"write {count_words(meant)}" if near else f"write one nearer to them, such as {count_words(close)}"
    )


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
    values = np.array(found, dtype=np.float64) * _unit(table, name)
    known = np.unique(values[np.isfinite(values)])
    for part in np.split(known, np.flatnonzero(known[1:] > SAME * known[:-1]) + 1) if len(known) else []:
        inside = (values >= part[0]) & (values <= part[-1])
        values[inside] = np.median(values[inside])
    return values


def _unit(table: CsvTable, name: str) -> float:
    """What plain numbers count by the name of their column: `params (M)`, `billion_tokens`."""
    said, found = words(name), table.numbers(name)
    unit = next(
        (UNITS_OF[word] for word in (said[-1:] + said[:1]) if len(said) > 1 and word in UNITS_OF), 1.0
    )
    return unit if all(value is not None and not value >= LARGE for value in found) else 1.0


def _bare(name: str) -> list[str]:
    """Words of a column's name without those of settings, of units and of numbers: `config.model.num_params`."""
    found = words(name)
    plain = [word for word in found if not word.isdigit() and word not in UNITS_OF]
    inner = [word for word in plain if word not in AREAS]
    return inner + [word for word in plain[-1:] if word in AREAS and word in COUNTED]  # `params` is both


def _repeat(cells: Sequence[object]) -> bool:
    """Whether there are several values, and several runs of each, as of a setting."""
    return len(set(cells)) > 1 and 2 * len(set(cells)) <= len(cells)


def _found(tables: Sequence[CsvTable], what: str) -> str | None:
    """A column that looks like one of sizes (or tokens), several of them with several runs each.

    It is called so; else it holds names with sizes, such as `pythia-70m`, which may be those of the runs.
    """
    for by_name in (True, False):
        for table in reversed(tables):
            for name in table.header:
                cells = [cell for cell in table.column(name) if not is_missing(cell)]
                counts = (
                    [read_count(cell) or 0.0 for cell in cells]
                    if table.is_text(name) or _repeat(cells)
                    else []
                )
                if not _repeat(counts) or _is_domain(tables, name):
                    continue
                unit = _unit(table, name)
                least, most = unit * min(counts), unit * max(counts)
                several = least > 0 and most > max(1.0, SAME * least)
                if several and _called(table, name, what, by_name, least):
                    return name
    return None


def _is_domain(tables: Sequence[CsvTable], name: str) -> bool:
    """Whether both files have a column of this name and other values in it: a domain, and its metric."""
    both = [set(each.column(name)) for each in tables if name in each.header]
    return both[0] != both[-1] and name.lower() not in METADATA


def _called(table: CsvTable, name: str, what: str, by_name: bool, least: float) -> bool:
    """Whether a column of counts holds sizes (or tokens) by its name; else, by what it holds."""
    said = set(_bare(name))
    if by_name:
        needed, allowed = (set(part.split()) for part in NAMES[what])
        unit = _unit(table, name) > 1 or table.is_text(name) or least >= LARGE
        if said == {LETTERS[what]} and len(words(name)) == 1:
            return least >= LARGE
        return bool(said & needed) and not said - needed - allowed and (unit or not said <= UNSURE)
    if what == "tokens" or not table.is_text(name) or least < LARGE or said & OTHERS:
        return False
    return not is_metric(name) and bookkeeping("_".join(_bare(name)) or name) is None


def _unsized(tables: Sequence[CsvTable]) -> tuple[CsvTable, str, str] | None:
    """A column by which runs are of several models without saying how large: words (`small`), or an architecture."""
    needed, allowed = (set(part.split()) for part in NAMES["size"])
    for table in reversed(tables):
        for name in table.header:
            cells, said = [cell for cell in table.column(name) if not is_missing(cell)], set(_bare(name))
            if not _repeat(cells) or _is_domain(tables, name) or is_metric(name):
                continue
            if table.is_text(name) and said & needed and not said - needed - allowed:
                return table, name, "models"
            core = (said & SHAPE[0] or {"d", "model"} <= said) and not said - SHAPE[0] - SHAPE[1]
            if core and all((read_count(cell) or 0.5) % 1 == 0 for cell in cells):
                return table, name, "model sizes"
    return None


def _check_unsized(tables: Sequence[CsvTable], ask: Ask | None) -> None:
    """Refuse runs of several models of which sizes are not known, or ask."""
    found = _unsized(tables)
    if found is None:
        return
    table, name, what = found
    cells = [cell for cell in table.column(name) if not is_missing(cell)]
    counts = {cell: cells.count(cell) for cell in dict.fromkeys(cells)}
    said = ", ".join(f"{cell} ({count} runs)" for cell, count in list(counts.items())[:SHOWN])
    said += f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    if ask is None or not ask(
        f"`{name}` tells several {what} apart: {said}. Take them as one sweep all the same?"
    ):
        raise UserError(
            f"by this column the runs are of several {what}: {said}", file=table.path, key=name,
            remedy="name a column of sizes (70M) with --size-column; "
            f"--size-column {NONE} takes all runs as one sweep",
        )  # fmt: skip


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
        if what == "size" and given is None and name is None:
            _check_unsized(tables, asked.ask)
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
    tables = [
        table.without([n for n in names if n and n.lower() not in METADATA and words(n) not in RUN_WORDS])
        for table in tables
    ]
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
        ends, runs = _ends(columns[1], len(metrics.rows)), [plain(run) for run in ratios.column(left)]
        named, own = metrics.renamed(right, ends), columns[0]
        if one_file(ratios, metrics):
            return [ratios.renamed(left, ends), named], own
        if len(set(runs)) < len(runs):
            return [ratios.renamed(left, _ends(own, len(runs))), named], own
        return [repeated(ratios, left, metrics.column(right), ends), named], [None, None]
    return tables, columns[0]


def _ends(columns: Columns, rows: int) -> list[str]:
    """What is put behind the name of every row's run."""
    known = [column for column in columns if column is not None]
    return ["".join(f" at {count_words(column[row])}" for column in known) for row in range(rows)]
