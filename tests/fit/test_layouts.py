"""Other layouts of tables: long ones with seeds and sizes, JSON of pandas, spaces; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.fit import read_sweep
from opmix_ray.fit.sizes import SizeColumns
from tests.fit.test_columns import DOMAINS, LOSSES, ROWS, SHARES, Cells, files, write

RUNS: list[object] = [f"r{i}" for i in range(ROWS)]
METRICS = [f"{name}_loss" for name in DOMAINS]


def long(kind: str, value: str, names: list[str], values: np.ndarray, **more: Any) -> Cells:
    """A line for every run and name; `more` are columns by run."""
    return {
        "run": [run for run in RUNS for _ in names], kind: [name for _ in RUNS for name in names],
        value: [*values.ravel()], **{name: [cell for cell in cells for _ in names] for name, cells in more.items()},
    }  # fmt: skip


def stacked(tables: list[Cells]) -> Cells:
    return {name: [cell for table in tables for cell in table[name]] for name in tables[0]}


@pytest.mark.parametrize("seeds", [[0, 1], [42, 43, 44], ["a", "b"]])
@pytest.mark.parametrize("long_ratios", [True, False])
def test_long_tables_with_seeds(tmp_path: Path, seeds: list[Any], long_ratios: bool) -> None:
    ratios, _ = files(tmp_path)
    if long_ratios:
        ratios = write(tmp_path / "r.csv", long("domain", "share", list(DOMAINS), SHARES))
    tables = [
        long("metric", "value", METRICS, LOSSES + 0.01 * place, seed=[seed] * ROWS)
        for place, seed in enumerate(seeds)
    ]
    sweep = read_sweep(ratios, write(tmp_path / "m.csv", stacked(tables)))
    assert sweep.metric_names == METRICS
    assert len(sweep.runs) == ROWS * len(seeds)
    assert sweep.runs[0] == f"r0 seed {seeds[0]}"
    by_run = dict(zip(sweep.runs, sweep.metrics, strict=True))
    np.testing.assert_allclose(by_run[f"r3 seed {seeds[1]}"], LOSSES[3] + 0.01, atol=1e-4)


@pytest.mark.parametrize("size", [("70M", "410M"), (70_000_000, 410_000_000), ("pythia-70m", "pythia-410m")])
def test_long_tables_with_sizes(tmp_path: Path, size: tuple[Any, Any]) -> None:
    ratios, _ = files(tmp_path)
    tables = [
        long("metric", "value", METRICS, LOSSES - bonus, model=[name] * ROWS)
        for bonus, name in enumerate(size)
    ]
    metrics = write(tmp_path / "m.csv", stacked(tables))
    with pytest.raises(
        UserError, match=r"model: the runs have several model sizes: 70M \(12 runs\), 410M \(12 runs\)"
    ):
        read_sweep(ratios, metrics)
    sweep = read_sweep(ratios, metrics, sizes=SizeColumns(target_size="410M"))
    assert (sweep.metric_names, len(sweep.runs)) == (METRICS, 2 * ROWS)


def test_sizes_in_words_make_no_metrics(tmp_path: Path) -> None:
    ratios, _ = files(tmp_path)
    cells: Cells = {
        "run": RUNS * 2,
        "model": ["small"] * ROWS + ["large"] * ROWS,
        "loss": [*LOSSES[:, 0], *LOSSES[:, 1]],
    }
    with pytest.raises(
        UserError, match=r"model: by this column the runs are of several models: small \(12 runs\)"
    ):
        read_sweep(ratios, write(tmp_path / "m.csv", cells))


def test_what_is_the_same_in_all_lines_of_a_run_is_kept(tmp_path: Path) -> None:
    ratios, _ = files(tmp_path)
    states = ["finished"] * (ROWS - 2) + ["crashed"] * 2
    cells = long("metric", "value", METRICS, LOSSES, State=states, host=["a"] * ROWS, seed=range(ROWS))
    sweep = read_sweep(ratios, write(tmp_path / "m.csv", cells))
    assert (sweep.metric_names, len(sweep.runs)) == (METRICS, ROWS - 2)
    sizes = ["70M"] * 6 + ["410M"] * 6
    with pytest.raises(UserError, match="several model sizes"):
        read_sweep(ratios, write(tmp_path / "m.csv", long("metric", "value", METRICS, LOSSES, params=sizes)))


def test_a_host_of_every_seed_makes_no_metric_of_its_own(tmp_path: Path) -> None:
    ratios, _ = files(tmp_path)
    cells: Cells = {"run": RUNS * 2, "seed": [0] * ROWS + [1] * ROWS, "host": ["a"] * ROWS + ["b"] * ROWS,
                    "loss": [*LOSSES[:, 0], *LOSSES[:, 0]]}  # fmt: skip
    sweep = read_sweep(ratios, write(tmp_path / "m.csv", cells))
    assert (sweep.metric_names, len(sweep.runs)) == (["loss"], 2 * ROWS)


def test_an_index_that_was_saved_names_no_runs_of_a_long_table(tmp_path: Path) -> None:
    _, metrics = files(tmp_path)
    cells: Cells = {"index": list(range(3 * ROWS)), **long("domain", "share", list(DOMAINS), SHARES)}
    assert read_sweep(write(tmp_path / "r.csv", cells), metrics).domains == list(DOMAINS)
    named = long("name", "value", METRICS, LOSSES)
    turned = {key: named[key] for key in ("name", "value", "run")}
    assert read_sweep(tmp_path / "r.csv", write(tmp_path / "m.csv", turned)).metric_names == METRICS


def test_long_tables_with_several_columns_of_numbers(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    cells = long("domain", "weight", list(DOMAINS), SHARES)
    cells["tokens"] = [int(1e9 * float(str(share))) for share in cells["weight"]]
    with pytest.raises(
        UserError, match=r"r.csv: has a line .* `domain`.*: `weight`, `tokens`; keep one of them"
    ):
        read_sweep(write(tmp_path / "r.csv", cells), metrics)
    both = long("task", "loss", list(DOMAINS), LOSSES)
    both["acc"] = [1 / float(str(loss)) for loss in both["loss"]]
    sweep = read_sweep(ratios, write(tmp_path / "m.csv", both))
    assert sweep.metric_names == [f"{name}/{end}" for name in DOMAINS for end in ("loss", "acc")]


def test_lines_of_a_long_table_that_are_there_twice(tmp_path: Path) -> None:
    _, metrics = files(tmp_path)
    cells = long("domain", "share", list(DOMAINS), SHARES)
    twice = {name: [*column, column[1]] for name, column in cells.items()}
    with pytest.raises(
        UserError, match=r"run = r0: lines 3 and 38 both hold `code` of one run; keep one of them"
    ):
        read_sweep(write(tmp_path / "r.csv", twice), metrics)
