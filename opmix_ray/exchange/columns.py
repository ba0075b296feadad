"""Which columns of a sweep are shares, which are metrics and which way better, and why the others are neither.

Trackers export seeds, steps, learning rates and a saved index beside the losses. A column is left out for its name, or
for values that no metric has: the same in every run, counting the runs, a few settings. `--metric-columns` and
`--share-columns` overrule all of it.

Laws are fitted to what is to be low: a metric to be high counts as what it lacks, which is `1 - value`
for a metric between 0 and 1, `100 - value` for one up to 100, else `-value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations

import numpy as np

from opmix_ray.errors import UserError, nearest
from opmix_ray.exchange.column_names import (
    STATES,
    benchmark_rates,
    bookkeeping,
    counts,
    is_higher_better,
    is_metric,
    is_training_loss,
    set_of,
    words,
)
from opmix_ray.exchange.csv_table import CsvTable, is_missing

# States of a run, as trackers write them, that is not done or did not come to its end.
FAILED = set_of(
    "failed failure fail crashed crash killed error errored diverged oom timeout timed_out cancelled canceled aborted "
    "preempted preempting interrupted stopped running queued pending scheduled"
)
METADATA = frozenset({"run", "run_id", "name", "index", "", "unnamed: 0"})
MOST_ROUNDING = 0.05  # of a row's sum, however many domains there are
ROUNDING = 0.01 + 1e-9  # how far a row's sum may be from 1 and still be a mixture with rounded shares
JUDGED = 5  # runs from which values alone say that a column is no metric
SETTING = 4  # runs per value from which a column is a setting
MOST_SUSPECTS = 12  # columns of which every combination is tried


@dataclass(frozen=True)
class Column:
    """A column that was not taken, and why."""

    file: str
    name: str
    reason: str


@dataclass(frozen=True)
class Taken:
    """The columns of one file.

    Args:
        names: those taken.
        left_out: the others but for those that name the runs.
        asked: whether they were named by the user.
    """

    names: list[str]
    left_out: list[Column] = field(default_factory=list)
    asked: bool = False


def choose(wanted: Sequence[str], header: Sequence[str], file: object, key: str) -> list[str]:
    """Columns by names, patterns (`eval/*`) or several of them separated by commas, in the file's order.

    Raises:
        UserError: nothing has that name.
    """
    found: set[str] = set()
    for entry in wanted:
        for part in [entry] if entry in header else [part.strip() for part in entry.split(",")]:
            hits = [name for name in header if name == part or fnmatchcase(name, part)]
            if not hits:
                remedy = nearest(part, [name for name in header if name])
                raise UserError("no such column", file=file, key=key, value=part, remedy=remedy)
            found.update(hits)
    return [name for name in header if name in found]


def metric_columns(table: CsvTable, wanted: Sequence[str] | None, domains: Sequence[str]) -> Taken:
    """The columns of metrics.

    Raises:
        UserError: a wanted column is not there or holds words, or no column is left.
    """
    if wanted:
        return _asked(table, wanted, "--metric-columns")
    names, left_out = [], []
    candidates = {name: table.values(name) for name in table.header if name.lower() not in METADATA}
    fractions = any(_has_fractions(found) for name, found in candidates.items() if not bookkeeping(name))
    for name, found in candidates.items():
        reason = _unread(table, name) or _no_metric(name, found, domains, fractions)
        if reason is None:
            names.append(name)
        else:
            left_out.append(Column(table.path.name, name, reason))
    training = [name for name in names if is_training_loss(name)]
    if len(training) < len(names):
        names = [name for name in names if name not in training]
        left_out += [
            Column(table.path.name, name, "it is a loss on what each run trained on") for name in training
        ]
    if not names:
        said = "; ".join(f"`{c.name}`: {c.reason}" for c in left_out[:3])
        raise UserError(
            "no column holds a metric" + (f" ({said})" if said else ""),
            file=table.path,
            remedy="give one column of numbers per metric, or name them with --metric-columns",
        )
    return Taken(names, left_out)


def _unread(table: CsvTable, name: str) -> str | None:
    """Why a column holds no number at all, or None."""
    if table.is_text(name):
        return "it holds words"
    return "it is empty" if all(map(is_missing, table.column(name))) else None


def _no_metric(name: str, found: np.ndarray, domains: Sequence[str], fractions: bool) -> str | None:
    """Why a column of numbers is no metric, or None.

    Args:
        fractions: whether the file has other columns that are not of whole numbers.
    """
    own = name in domains
    if not own and (reason := bookkeeping(name)):
        return reason
    known = found[np.isfinite(found)]
    if len(known) < 2:
        return None
    if len(known) > 2 and _same(known):
        return f"it is {known[0]:g} in every run"
    if is_metric(name) and not counts(name):
        return None
    whole = not _has_fractions(known)
    if whole and not own and counts(name):
        return "by its name and whole numbers it counts something"
    if len(known) < JUDGED or is_metric(name):
        return None
    if whole and np.array_equal(np.sort(known), known.min() + np.arange(len(known))):
        return "it numbers the runs"
    if whole and fractions:
        return "it holds whole numbers only"
    if not own and len(np.unique(known)) * SETTING <= len(known):
        return f"it has {len(np.unique(known))} values in {len(known)} runs, as a setting has"
    return None


def share_columns(table: CsvTable, wanted: Sequence[str] | None) -> Taken:
    """The columns of shares: those of numbers without which the fewest rows sum to 1.

    Raises:
        UserError: a wanted column is not there or holds words, or no column is left.
    """
    if wanted:
        return _asked(table, wanted, "--share-columns")
    names, left_out = [], []
    for name in table.header:
        if name.lower() in METADATA:
            continue
        if reason := _unread(table, name):
            left_out.append(Column(table.path.name, name, reason))
        else:
            names.append(name)
    if names:
        columns = np.column_stack([table.values(name) for name in names])
        for place, reason in _no_shares(names, columns).items():
            left_out.append(Column(table.path.name, names[place], reason))
        gone = {column.name for column in left_out}
        names = [name for name in names if name not in gone]
    if not names:
        said = "; ".join(f"`{c.name}`: {c.reason}" for c in left_out[:3])
        raise UserError(
            "no column holds shares" + (f" ({said})" if said else ""),
            file=table.path,
            remedy="give one column of numbers per domain, or name them with --share-columns",
        )
    return Taken(names, left_out)


def _no_shares(names: Sequence[str], columns: np.ndarray) -> dict[int, str]:
    """Places of columns (N, D) that are no shares, and why."""
    count = len(columns)
    filled = np.nan_to_num(columns)
    odd = {
        place: reason for place, name in enumerate(names) if (reason := _no_share(name, columns[:, place]))
    }
    total = filled.sum(axis=1)
    if mixtures(total).all():  # what is called like a setting and only spoils the sums is one
        return {
            p: reason for p, reason in odd.items() if _spoils(total, filled[:, p]) and len(odd) < len(names)
        }
    if len(odd) < len(names) and mixtures(total - filled[:, list(odd)].sum(axis=1)).all():
        return odd
    suspects = list(odd)[:MOST_SUSPECTS]
    always = {p: odd[p] for p in list(odd)[MOST_SUSPECTS:]}
    rest = total - filled[:, list(always)].sum(axis=1)
    best, most = always, int(mixtures(rest).sum())
    for size in range(1, len(suspects) + 1):
        for parts in combinations(suspects, size):
            right = int(mixtures(rest - filled[:, list(parts)].sum(axis=1)).sum())
            if right > most:
                best, most = always | {p: odd[p] for p in parts}, right
    if most:
        idle = {p: reason for p, reason in odd.items() if p not in best and not filled[:, p].any()}
        best = best | idle
        rest = total - filled[:, list(best)].sum(axis=1)
        for place, reason in odd.items():  # too small to spoil a sum, as a learning rate is
            if place not in best and _spoils(rest, filled[:, place]):
                best, rest = best | {place: reason}, rest - filled[:, place]
    if most == count:
        return best
    # names do not say all: one or two more columns without which the rows, or clearly more of them, are mixtures
    many = 2 * most >= count
    needed = most + max(2, count // 10) if many else count // 2 + 1
    for gone in (best,) if many else (odd, {}) if len(odd) < len(names) else ({},):
        rest = total - filled[:, list(gone)].sum(axis=1)
        others = [place for place in range(len(names)) if place not in gone]
        for size in (1, 2):
            for parts in combinations(others, size):
                if mixtures(rest - filled[:, list(parts)].sum(axis=1)).sum() >= needed:
                    return gone | dict.fromkeys(parts, "the other columns sum to 1 without it")
    return best


def _spoils(total: np.ndarray, column: np.ndarray) -> bool:
    """Whether rows (N,) are mixtures without a column, and no farther from 1 or 100 than with it."""
    unit = np.where(total > 50, 100.0, 1.0)
    without = np.abs(total - column - unit) / unit
    return bool(
        (mixtures(total - column) >= mixtures(total)).all()
        and without.mean() <= (np.abs(total - unit) / unit).mean()
    )


def _no_share(name: str, found: np.ndarray) -> str | None:
    """Why a column may be something else than shares, or None."""
    if reason := bookkeeping(name):
        return reason.replace("no metric", "no share")
    known = found[np.isfinite(found)]
    if is_metric(name):
        return "by its name it is a metric"
    if counts(name):
        return "by its name it counts something"
    if len(known) and float(np.median(np.abs(known))) > 100 * (1 + ROUNDING):
        return "its values are no shares"
    if len(known) > 2 and _same(known) and known[0] > 1 + ROUNDING:
        return f"it is {known[0]:g} in every run"
    if len(known) >= JUDGED and not _has_fractions(known) and known.max() > 1:
        return "it holds whole numbers only"
    if len(known) >= JUDGED and float(np.median(known)) < 0:
        return "its values are below 0"
    return None


def mixtures(sums: np.ndarray) -> np.ndarray:
    """Which rows are mixtures by their sums (N,): 1, or 100 where shares are per cent."""
    return (np.abs(sums - 1) <= ROUNDING) | (np.abs(sums - 100) <= 100 * ROUNDING)


def rounding(numbers: np.ndarray, sums: np.ndarray) -> float:
    """How far from 1 the sum of a row may be for the rounding of its shares, from (N, D) as they are written."""
    known, domains = numbers[np.isfinite(numbers)], numbers.shape[1]
    known = known / (100 if len(sums) and np.median(sums) > 50 else 1)
    steps = (10.0**-k for k in range(1, 6))
    step = next((step for step in steps if np.allclose(known / step, np.round(known / step), atol=1e-6)), 0.0)
    return min(domains / 2 * step, 1.2 * domains**0.5 * step, MOST_ROUNDING)


def hold_shares(table: CsvTable) -> bool:
    """Whether the rows of a table are mixtures: its numbers sum to 1 or 100."""
    columns = [table.numbers(name) for name in table.header if not table.is_text(name)]
    sums = np.array([sum(cell or 0.0 for cell in row) for row in zip(*columns, strict=True)])
    return len(sums) > 0 and bool(((np.abs(sums - 1) < 0.02) | (np.abs(sums - 100) < 2)).all())


def unfinished(table: CsvTable, place: int) -> str | None:
    """What a row's column of states says, where that is no run that came to its end."""
    for name, cell in zip(table.header, table.rows[place], strict=True):
        if words(name)[-1:] in STATES and cell.strip().lower() in FAILED:
            return f"its `{name}` is {cell}"
    return None


def not_in(run: str, others: Sequence[str], table: CsvTable) -> str:
    """That a run is missing in a file, and which name there only looks alike."""
    alike = [other for other in others if other != run and _looks(other) == _looks(run)]
    hint = f" (`{alike[0]}` there is another name)" if alike else ""
    return f"not in {table.path.name}{hint}"


def _looks(run: str) -> str | float:
    try:
        return float(run)
    except ValueError:
        return run.strip().lower()


def _asked(table: CsvTable, wanted: Sequence[str], key: str) -> Taken:
    names = choose(wanted, table.header, table.path, key)
    for name in names:
        if table.is_text(name):
            raise UserError("holds words", file=table.path, key=name, remedy=f"leave it out of {key}")
    others = [name for name in table.header if name not in names and name.lower() not in METADATA]
    return Taken(names, [Column(table.path.name, name, f"not in {key}") for name in others], asked=True)


def _has_fractions(found: np.ndarray) -> bool:
    known = found[np.isfinite(found)]
    return bool((known != np.round(known)).any())


def _same(known: np.ndarray) -> bool:
    return bool(np.ptp(known) <= 1e-9 * max(1e-300, float(np.abs(known).max())))


SHOWN = 5
Ask = Callable[[str], bool]


def maximised(
    metric_names: Sequence[str],
    metrics: np.ndarray,
    *,
    maximise: Sequence[str] = (),
    minimise: Sequence[str] = (),
    decides: Sequence[str] | None = None,
    ask: Ask | None = None,
    file: object = None,
) -> dict[str, float]:
    """For every metric that is better when higher the value from which it is subtracted.

    Args:
        metric_names, metrics: M names and (N, M) values.
        maximise, minimise: names or patterns of metrics that are better when higher, when lower.
        decides: metrics that the proposal depends on; only about these a direction has to be known. None: all.
        ask: puts a question to a person; None: nobody is there.

    Raises:
        UserError: an unknown name, one in both lists, or a metric whose name says that higher is better and of which
            nobody has said which it is.
    """
    up = set(choose(maximise, metric_names, file, "--maximise"))
    down = set(choose(minimise, metric_names, file, "--minimise"))
    if both := [name for name in metric_names if name in up & down]:
        raise UserError(
            "is to be both maximised and minimised",
            key="--maximise",
            value=both[0],
            remedy="name it with one of the two",
        )
    rates, doubtful = benchmark_rates(metric_names, metrics)
    asked = [
        n for n in metric_names if (is_higher_better(n) or n in rates or n in doubtful) and n not in up | down
    ]
    deciding = asked if decides is None else [name for name in asked if name in decides]
    if deciding and ask is None:
        raise _unsaid(deciding, doubtful, file)
    for name in deciding:
        assert ask is not None
        if ask(f"`{name}`: is higher better?"):
            up.add(name)
    up.update(name for name in asked if name not in deciding and name not in doubtful)
    return {name: _top(metrics[:, place]) for place, name in enumerate(metric_names) if name in up}


def _unsaid(deciding: Sequence[str], doubtful: Sequence[str], file: object) -> UserError:
    """That nobody has said which way these metrics are better."""

    def listed(names: Sequence[str]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more

    higher = [name for name in deciding if name not in doubtful]
    open_ = [name for name in deciding if name in doubtful]
    said = []
    if higher:
        names = "its name" if len(higher) == 1 else "their names"
        said.append(f"{listed(higher)}: by {names} higher is better, and metrics are minimised")
    if open_:
        said.append(
            f"{listed(open_)}: neither name nor values say whether higher is better, as for per cent, or lower"
        )
    options = " ".join(f"--maximise '{name}'" for name in deciding[:SHOWN])
    return UserError(
        "; ".join(said),
        file=file,
        key=deciding[0],
        remedy=f"give {options}, or --minimise where lower is better (both take patterns, such as '*acc*')",
    )


def _top(values: np.ndarray) -> float:
    """The best value that a metric can have, or 0 where it has none."""
    known = values[np.isfinite(values)]
    if not len(known) or known.min() < 0 or known.max() > 100:
        return 0.0
    return 1.0 if known.max() <= 1 else 100.0


def turned(values: np.ndarray, metric_names: Sequence[str], tops: Mapping[str, float]) -> np.ndarray:
    """Metrics (..., M) as losses, or such losses as metrics: `top - value` where higher is better."""
    found = np.array(values, dtype=np.float64)
    for place, name in enumerate(metric_names):
        if name in tops:
            found[..., place] = tops[name] - found[..., place]
    return found


def direction_notes(tops: Mapping[str, float]) -> list[str]:
    """What was done to metrics that are better when higher, in words."""
    by_top: dict[float, list[str]] = {}
    for name, top in tops.items():
        by_top.setdefault(top, []).append(name)
    found = []
    for top, names in by_top.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        counted = f"{top:g} - value" if top else "-value"
        shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
        found.append(f"higher is better for {shown}{more}: counted as {counted}")
    return found
