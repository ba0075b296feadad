"""Trial rows on disk: whole after a crash, in olmix's columns."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from opmix_ray.errors import UserError
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import METRICS, RATIOS, TRIALS, RowLog, TrialRow


def row(run: str, nats: list[float], *, status: str = "ok") -> TrialRow:
    return TrialRow(
        run=run,
        weights={"old": 0.5, "a": 0.5},
        ratios={"a": 0.75, "b": 0.25},
        losses={"a": sum(nats) / len(nats)},
        objective=sum(nats) / len(nats),
        status=status,  # type: ignore[arg-type]
        nats={"a": nats},
        targets={"a": [1] * len(nats)},
    )


def log(directory: Path) -> RowLog:
    return RowLog(Storage(str(directory)), ["a", "b"], ["a"])


def table(file: Path) -> list[list[str]]:
    return list(csv.reader(file.open()))


def test_rows_are_on_disk_at_once_and_found_again(tmp_path: Path) -> None:
    first = log(tmp_path)
    first.add(row("001", [1.0, 2.0]))
    first.add(row("000", [2.0, 3.0]))
    assert [r.run for r in log(tmp_path).rows] == ["001", "000"]
    assert log(tmp_path).rows[0] == row("001", [1.0, 2.0])


def test_tables_have_the_columns_that_olmix_reads(tmp_path: Path) -> None:
    rows = log(tmp_path)
    rows.add(row("000", [1.0, 2.0]))
    assert table(tmp_path / RATIOS) == [["run", "a", "b"], ["000", "0.75", "0.25"]]
    assert table(tmp_path / METRICS) == [["run", "eval_a_loss"], ["000", "1.5"]]


def test_a_line_that_a_crash_cut_off_is_dropped_everywhere(tmp_path: Path) -> None:
    rows = log(tmp_path)
    rows.add(row("000", [1.0]))
    with (tmp_path / TRIALS).open("a") as file:
        file.write('{"run": "001", "wei')
    with (tmp_path / METRICS).open("a") as file:
        file.write("001,1")
    again = log(tmp_path)
    again.add(row("001", [4.0]))
    assert [r.run for r in again.rows] == ["000", "001"]
    assert [line[0] for line in table(tmp_path / METRICS)] == ["run", "000", "001"]
    assert [r.run for r in log(tmp_path).rows] == ["000", "001"]


def test_settling_brings_rows_into_the_order_of_their_runs(tmp_path: Path) -> None:
    rows = log(tmp_path)
    for run in ("001", "proposal", "000"):
        rows.add(row(run, [1.0]))
    rows.sort()
    assert [line[0] for line in table(tmp_path / RATIOS)] == ["run", "000", "001", "proposal"]


def test_a_file_that_is_not_a_list_of_trials_is_named(tmp_path: Path) -> None:
    (tmp_path / TRIALS).write_text("hello\n")
    with pytest.raises(UserError, match=r"trials\.jsonl"):
        log(tmp_path)


def test_numbers_that_are_none_are_written_as_nan(tmp_path: Path) -> None:
    rows = log(tmp_path)
    rows.add(TrialRow("000", {}, {"a": 1.0, "b": 0.0}, {"a": math.nan}, status="nan"))
    assert table(tmp_path / METRICS)[1] == ["000", "nan"]
    assert log(tmp_path).rows[0].status == "nan"
