"""Tables as trackers, spreadsheets and people write them: other kinds of files, long forms, other names, states."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from opmix_ray.errors import UserError
from opmix_ray.exchange.column_names import is_training_loss, unsaid_notes
from opmix_ray.fit import fit_command, predict_command, read_sweep
from opmix_ray.fit.command import taken_words
from tests.fit.test_columns import DOMAINS, LOSSES, ROWS, SHARES, Cells, files, write

RUNS: list[object] = [f"r{i}" for i in range(ROWS)]
METRICS = [f"{name}_loss" for name in DOMAINS]


def shares(*names: str) -> Cells:
    return {name: SHARES[:, place].tolist() for place, name in enumerate(names)}


def losses(*names: str) -> Cells:
    return {name: LOSSES[:, place].tolist() for place, name in enumerate(names)}


def check(ratios: Path, metrics: Path, **given: list[str]) -> None:
    """That the sweep is the one of `files`."""
    sweep = read_sweep(ratios, metrics, share_names=given.get("share_names"))
    assert len(sweep.runs) == ROWS
    np.testing.assert_allclose(sweep.ratios, SHARES, atol=1e-5)
    np.testing.assert_allclose(sweep.metrics, LOSSES, atol=1e-4)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_packed_tables(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    ratios, metrics = files(tmp_path)
    packed = tmp_path / "ratios.csv.packed"
    packed.write_bytes(pack(ratios.read_bytes()))
    check(packed, metrics)
    packed.write_bytes(pack(ratios.read_bytes())[:-20])
    with pytest.raises(UserError, match=r"ratios.csv.packed: (cannot be|holds|is)"):
        read_sweep(packed, metrics)


def test_parquet_and_lines_of_json(tmp_path: Path) -> None:
    ratios, metrics = tmp_path / "ratios.parquet", tmp_path / "metrics.jsonl"
    pq.write_table(pa.table({"run": RUNS, **shares(*DOMAINS)}), ratios)
    rows = zip(RUNS, LOSSES.tolist(), strict=True)
    text = [json.dumps({"run": run, "eval": dict(zip(METRICS, row, strict=True))}) for run, row in rows]
    metrics.write_text("\n".join(text))
    check(ratios, metrics)
    metrics.write_text("[" + ",\n".join(text) + "]")
    check(ratios, metrics)
    metrics.write_text("[" + ",\n".join(text))
    with pytest.raises(UserError, match=r"metrics.jsonl: is no table in JSON"):
        read_sweep(ratios, metrics)
    ratios.write_bytes(ratios.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"ratios.parquet: is no Parquet.*save the table as CSV"):
        read_sweep(ratios, metrics)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    ratios, metrics = files(tmp_path)
    text = ratios.read_text().replace("web,", "Bücher,")
    ratios.write_bytes(text.encode(encoding))
    sweep = read_sweep(ratios, metrics)
    assert sweep.domains[0] == "Bücher"
    assert any("read as cp1252" in note for note in sweep.notes) is (encoding == "cp1252")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "is an Excel workbook or a zip archive; save the table as CSV"),
        (b"<html><table></table></html>", "is HTML; save the table as CSV"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not text"),
        (b"r0,0.25,0.75\nr1,0.5,0.5\n", "first line holds numbers .* write a header line"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    _, metrics = files(tmp_path)
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_sweep(tmp_path / "other", metrics)


def test_blank_ends_and_remarks_of_a_spreadsheet(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    lines = ratios.read_text().splitlines()
    ratios.write_text("# made by hand\n# in May\n" + "".join(f"{line},,\n" for line in lines) + ",,,,,\n")
    metrics.write_text(metrics.read_text().replace("run,", "# run,", 1))
    ratios.write_text(ratios.read_text().replace("run,", "# run,", 1))
    check(ratios, metrics)
    ratios.write_text("\n".join(["run,web,code,books,", *(f"{line},7" for line in lines[1:])]))
    check(ratios, metrics, share_names=list(DOMAINS))


@pytest.mark.parametrize("kinds", [("metric",), ("task", "metric")])
def test_a_line_for_every_run_and_metric(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    names = [name for _ in range(ROWS) for name in DOMAINS]
    every: list[object] = [run for run in RUNS for _ in DOMAINS]
    ratios = write(
        tmp_path / "r.csv", {"run": every, "domain": [*names], "weight": [*SHARES.ravel()]}
    )  # fmt: skip
    told: Cells = {kinds[0]: [f"{name}_loss" for name in names] if len(kinds) == 1 else list(names)}
    if len(kinds) > 1:
        told["metric"] = ["loss", "nll", "ppl"] * ROWS
    metrics = write(tmp_path / "m.csv", {"run": every, **told, "value": [*LOSSES.ravel()]})
    check(ratios, metrics)
    sweep = read_sweep(ratios, metrics)
    assert sweep.domains == list(DOMAINS)
    expected = METRICS if len(kinds) == 1 else ["web/loss", "code/nll", "books/ppl"]
    assert sweep.metric_names == expected
    assert "r.csv has several lines a run: they were put side by side by `domain`" in sweep.notes


def test_a_line_for_every_run_and_domain_is_predicted_too(tmp_path: Path) -> None:
    fit_command(*files(tmp_path), tmp_path / "out", law="linear", bootstrap=0)
    names: list[object] = [name for _ in RUNS for name in DOMAINS]
    cells: Cells = {"run": [r for r in RUNS for _ in DOMAINS], "domain": names, "share": [*SHARES.ravel()]}
    long = predict_command(tmp_path / "out", write(tmp_path / "long.csv", cells), tmp_path / "a.csv")
    predict_command(tmp_path / "out", tmp_path / "ratios.csv", tmp_path / "b.csv")
    assert long["rows"] == ROWS
    both = [
        np.loadtxt(tmp_path / f"{name}.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3)) for name in "ab"
    ]
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


def test_a_metric_that_names_the_column_of_a_long_table_is_in_the_names(tmp_path: Path) -> None:
    ratios, _ = files(tmp_path)
    names: list[object] = [name for _ in RUNS for name in DOMAINS]
    cells: Cells = {"run": [r for r in RUNS for _ in DOMAINS], "task": names, "loss": [*LOSSES.ravel()]}
    assert read_sweep(ratios, write(tmp_path / "m.csv", cells)).metric_names == [f"{n}/loss" for n in DOMAINS]


@pytest.mark.parametrize(
    "key", ["Run ID", "runName", "run-id", "trial", "experiment", "id", "model", "#", ""]
)
def test_runs_named_in_another_column_of_both(tmp_path: Path, key: str) -> None:
    ratios = write(tmp_path / "r.csv", {key: RUNS, **shares(*DOMAINS)})
    metrics = write(tmp_path / "m.csv", {key: RUNS, **losses(*METRICS)})
    check(ratios, metrics)
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    check(ratios, metrics)


def test_tables_with_a_column_for_every_run_are_told(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    turned: Cells = {
        "domain": list(DOMAINS), **{str(run): SHARES[i].tolist() for i, run in enumerate(RUNS)}
    }  # fmt: skip
    with pytest.raises(UserError, match=r"r.csv: has columns for runs of metrics.csv; turn the table"):
        read_sweep(write(tmp_path / "r.csv", turned), metrics)
    chart: Cells = {"Step": [0, 1], **{f"{run} - eval/loss": [3.0, 2.0] for run in RUNS}}
    with pytest.raises(UserError, match=r"chart.csv: has columns for runs of ratios.csv"):
        read_sweep(ratios, write(tmp_path / "chart.csv", chart))


def test_files_given_the_wrong_way_round(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    with pytest.raises(UserError, match="--ratios and --metrics look swapped"):
        read_sweep(metrics, ratios)


@pytest.mark.parametrize("column", ["State", "status", "run_state"])
def test_runs_that_did_not_come_to_their_end_are_left_out(tmp_path: Path, column: str) -> None:
    states: list[object] = [*["finished"] * (ROWS - 3), "crashed", "FAILED", "running"]
    sweep = read_sweep(*files(tmp_path, more_metrics={column: states}))
    assert len(sweep.runs) == ROWS - 3
    assert [item.reason for item in sweep.left_out] == [
        f"its `{column}` is {state}" for state in ("crashed", "FAILED", "running")
    ]
    assert taken_words(sweep)[-1].startswith(f"runs left out: r9 (its `{column}` is crashed), r10")


def test_a_trackers_export_of_everything(tmp_path: Path) -> None:
    """Blank columns are no domains, a learning rate too small to spoil a sum is no share, columns are named once."""
    cells: Cells = {
        "Name": RUNS, "Notes": ["-"] * ROWS, "Tags": [""] * ROWS, "config.lr": [3e-4] * ROWS,
        "config.seed": list(range(ROWS)), **{f"config.mix.{n}": c for n, c in shares(*DOMAINS).items()},
        **{f"summary.{n}": c for n, c in losses(*METRICS).items()}, "summary.train/loss": RNG_LOSS,
    }  # fmt: skip
    file = write(tmp_path / "wandb.csv", cells)
    sweep = read_sweep(file, file)
    assert sweep.domains == [f"config.mix.{name}" for name in DOMAINS]
    assert sweep.metric_names == [f"summary.{name}" for name in METRICS]
    assert sorted(column.name for column in sweep.left_out_columns) == [
        "Notes", "Tags", "config.lr", "config.seed", "summary.train/loss",
    ]  # fmt: skip


RNG_LOSS: list[object] = np.random.default_rng(8).uniform(2, 3, ROWS).tolist()


@pytest.mark.parametrize(
    ("name", "training"),
    [("train/loss", True), ("training_loss", True), ("train_loss_epoch", True), ("loss", False), ("val_loss", False),
     ("train/web_loss", False), ("train_time", False), ("eval/train_loss", False)],
)  # fmt: skip
def test_losses_on_what_a_run_trained_on(name: str, training: bool) -> None:
    assert is_training_loss(name) is training


def test_a_training_loss_is_a_metric_where_there_is_no_other(tmp_path: Path) -> None:
    ratios, _ = files(tmp_path)
    metrics = write(tmp_path / "m.csv", {"run": RUNS, "train_loss": RNG_LOSS})
    assert read_sweep(ratios, metrics).metric_names == ["train_loss"]


def test_sums_of_rounded_shares(tmp_path: Path) -> None:
    """.33 three times is a mixture; so are two dozen shares with two decimals that sum to .96; .9 is none."""
    _, metrics = files(tmp_path)
    thirds: Cells = {
        "a": [0.33, 0.3, 0.5, 0.2] * 3, "b": [0.33, 0.3, 0.2, 0.2] * 3, "c": [0.33, 0.3, 0.3, 0.6] * 3
    }  # fmt: skip
    sweep = read_sweep(write(tmp_path / "t.csv", {"run": RUNS, **thirds}), metrics)
    assert len(sweep.runs) == 9
    assert {item.reason for item in sweep.left_out} == {"its shares sum to 0.9, not to 1"}
    drawn = np.random.default_rng(4).dirichlet(np.ones(24), ROWS)
    many: Cells = {f"d{i}": [f"{v:.2f}" for v in drawn[:, i]] for i in range(24)}
    sums = np.array([[float(str(v)) for v in column] for column in many.values()]).sum(axis=0)
    assert np.abs(sums - 1).max() > 0.015
    assert len(read_sweep(write(tmp_path / "d.csv", {"run": RUNS, **many}), metrics).runs) == ROWS


def test_tokens_instead_of_shares_are_read_when_they_are_named(tmp_path: Path) -> None:
    _, metrics = files(tmp_path)
    tokens: Cells = {
        name: [int(2e9 * v) for v in column] for name, column in _floats(shares(*DOMAINS)).items()
    }
    ratios = write(tmp_path / "r.csv", {"run": RUNS, **tokens})
    check(ratios, metrics, share_names=list(DOMAINS))
    with pytest.raises(UserError, match=r"name columns that count tokens with --share-columns"):
        read_sweep(ratios, metrics)


def _floats(cells: Cells) -> dict[str, list[float]]:
    return {name: [float(str(cell)) for cell in column] for name, column in cells.items()}


BENCHMARKS = ["mmlu", "MMLU-5shot", "hellaswag", "gsm8k", "human_eval", "arc_easy:rc::olmes", "mt_bench"]


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(("low", "high", "rate"), [(0.2, 0.6, True), (20, 60, True), (0.8, 3.0, False)])
def test_benchmarks_are_rates_by_their_values(
    tmp_path: Path, name: str, low: float, high: float, rate: bool
) -> None:
    """Bits per byte on a benchmark are called like it too; accuracies have to be told apart from them."""
    values: list[object] = np.random.default_rng(0).uniform(low, high, ROWS).tolist()
    ratios, _ = files(tmp_path)
    metrics = write(tmp_path / "m.csv", {"run": RUNS, name: values})
    if rate:
        with pytest.raises(UserError, match=r"higher is better.*--maximise"):
            fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0)
    elif name in ("gsm8k", "human_eval", "mt_bench"):  # few of its answers may be right
        with pytest.raises(UserError, match=r"neither name nor values say.*--maximise"):
            fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0)
    else:
        summary = fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0)
        assert f"lower is taken to be better for `{name}`" in " ".join(summary["notes"])


def test_of_what_a_name_says_nothing_is_noted() -> None:
    assert unsaid_notes(["web_loss", "ppl", "wer", "acc"], ["acc"]) == []
    (note,) = unsaid_notes(["validation", "a", "b", "c", "web_loss"], [])
    assert note.startswith("lower is taken to be better for `validation`, `a`, `b` and 1 more")


def notes(tmp_path: Path, metrics: Cells, rows: int = ROWS) -> str:
    cells: Cells = {"run": RUNS[:rows], **{name: column[:rows] for name, column in metrics.items()}}
    ratios = write(
        tmp_path / "r.csv", {"run": RUNS[:rows], **{n: c[:rows] for n, c in shares(*DOMAINS).items()}}
    )
    summary = fit_command(
        ratios, write(tmp_path / "m.csv", cells), tmp_path / "out", law="ridge", bootstrap=0
    )
    return " ".join(summary["notes"])


@pytest.mark.seconds
def test_what_speaks_against_a_law_is_said(tmp_path: Path) -> None:
    good = notes(tmp_path, losses(*METRICS))
    assert not any(word in good for word in ("few for", "do not trust", "differ in scale"))
    gaps: Cells = {
        name: [value if (i + k) % 3 else "" for i, value in enumerate(column)]
        for k, (name, column) in enumerate(losses(*METRICS).items())
    }
    assert not any(word in notes(tmp_path, gaps) for word in ("few for", "do not trust"))
    assert "4 runs are few for 3 domains" in notes(tmp_path, losses(*METRICS), rows=4)
    noise: Cells = {"loss": np.random.default_rng(5).normal(3, 0.01, ROWS).tolist()}
    assert "do not trust the mixture" in notes(tmp_path, noise)
    steep: Cells = {**losses("web_loss"), "code_ppl": np.exp(3 * LOSSES[:, 1]).tolist()}
    assert "differ in scale: `code_ppl` varies more than 10 times" in notes(tmp_path, steep)
