"""Sweeps as people have them: joined by run, and a word on everything that is left out or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.exchange import csv_table
from opmix_ray.fit.options import read_bounds, read_caps, read_objective, read_prior
from opmix_ray.fit.sweep import Sweep, read_sweep

DOMAINS = ["code", "prose", "maths"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def sweep(tmp_path: Path, ratios: str, metrics: str) -> Sweep:
    return read_sweep(write(tmp_path / "ratios.csv", ratios), write(tmp_path / "metrics.csv", metrics))


RATIOS = "run,code,prose\na,0.5,0.5\nb,0.2,0.8\nc,0.7,0.3\nd,0.9,0.1\n"
METRICS = "run,code_loss,prose_loss\na,1,2\nb,1.5,1.8\nc,0.9,2.2\nd,0.8,2.5\n"


def test_plain_files(tmp_path: Path) -> None:
    read = sweep(tmp_path, RATIOS, METRICS)
    assert read.domains == ["code", "prose"]
    assert read.metric_names == ["code_loss", "prose_loss"]
    assert read.runs == ["a", "b", "c", "d"]
    np.testing.assert_allclose(read.ratios[1], [0.2, 0.8])
    np.testing.assert_allclose(read.metrics[3], [0.8, 2.5])
    assert not read.left_out
    assert not read.notes


SEEDS = [*METRICS.splitlines()[1:], "a,1.1,2.1", "b,1.4,1.9", "c,1.0,2.1", "d,0.7,2.6"]


@pytest.mark.parametrize("seed", ["seed", "config/seed", "replicate"])
def test_a_run_with_several_seeds_is_several_rows(tmp_path: Path, seed: str) -> None:
    lines = [f"{line},{1 + place // 4}" for place, line in enumerate(SEEDS)]
    metrics = f"run,code_loss,prose_loss,{seed}\n" + "\n".join(lines)
    read = sweep(tmp_path, RATIOS + "e,0.4,0.6\n", metrics)
    assert read.runs == [f"{run} seed {number}" for run in "abcd" for number in (1, 2)]
    np.testing.assert_allclose(read.ratios[:2], [[0.5, 0.5]] * 2)
    np.testing.assert_allclose(read.metrics[:2, 0], [1, 1.1])
    assert [item.run for item in read.left_out] == ["e"]
    assert f"metrics.csv has several seeds of a run (`{seed}`): each is a row of its own" in read.notes
    whole = "".join(
        f"{line},{RATIOS.splitlines()[1 + place % 4].partition(',')[2]}\n" for place, line in enumerate(lines)
    )
    one = f"run,code_loss,prose_loss,{seed},code,prose\n" + whole
    again = sweep(tmp_path, one, one)
    assert again.runs == [f"{run} seed {number}" for number in (1, 2) for run in "abcd"]
    both = read_sweep(tmp_path / "ratios.csv", tmp_path / "ratios.csv")
    assert sorted(both.runs) == sorted(read.runs)
    np.testing.assert_allclose(both.metrics[4:, 0], [1.1, 1.4, 1.0, 0.7])


def test_seeds_that_say_nothing_of_the_lines_of_a_run_leave_them_the_same_run(tmp_path: Path) -> None:
    for seeds in (range(8), [1] * 8):  # one for every line, one for all
        lines = [f"{line},{seed}" for line, seed in zip(SEEDS, seeds, strict=True)]
        with pytest.raises(UserError, match="lines 2 and 6 are the same run"):
            sweep(tmp_path, RATIOS, "run,code_loss,prose_loss,seed\n" + "\n".join(lines))


def test_olmix_files_with_their_metadata(tmp_path: Path) -> None:
    ratios = "run,name,index,code,prose\n" + "".join(
        f"r{i},mix-{i},{i},0.{i},0.{10 - i}\n" for i in range(1, 6)
    )
    metrics = "run_id,name,index,eval_a_bpb\n" + "".join(
        f"r{i},other-{i},{9 - i},1.{i}\n" for i in range(5, 0, -1)
    )
    read = sweep(tmp_path, ratios, metrics)
    assert read.domains == ["code", "prose"]
    assert read.metric_names == ["eval_a_bpb"]
    np.testing.assert_allclose(read.metrics[:, 0], 1 + 10 * read.ratios[:, 0] / 10)


def test_regmix_files_whose_rows_are_rounded(tmp_path: Path) -> None:
    ratios = "index,train_a,train_b\n1,0.333,0.666\n2,0.25,0.75\n3,0.501,0.5\n"
    metrics = "index,metric/a_val_loss,metric/b_val_loss\n3,4,5\n2,3,4\n1,2,3\n"
    read = sweep(tmp_path, ratios, metrics)
    np.testing.assert_allclose(read.ratios.sum(axis=1), 1)
    np.testing.assert_allclose(read.metrics[:, 0], [2, 3, 4])
    assert any("2 rows of ratios.csv, for sums of 0.999 to 1.001" in note for note in read.notes)


@pytest.mark.parametrize("key", ["run", "run_id", "index", "name", "Run"])
def test_any_of_the_usual_columns_joins(tmp_path: Path, key: str) -> None:
    assert len(sweep(tmp_path, RATIOS.replace("run", key), METRICS.replace("run", key)).runs) == 4


@pytest.mark.parametrize(("here", "there"), [("run", "Name"), ("name", "run_id"), ("index", "run")])
def test_usual_columns_of_two_names_join_where_their_runs_are_the_same(
    tmp_path: Path, here: str, there: str
) -> None:
    read = sweep(tmp_path, RATIOS.replace("run", here), METRICS.replace("run", there))
    assert read.runs == ["a", "b", "c", "d"]
    assert f"`{here}` of ratios.csv names the runs as `{there}` of metrics.csv" in read.notes


def test_runs_are_joined_by_the_column_that_names_each_once(tmp_path: Path) -> None:
    ratios = "run,index,code,prose\nx,1,0.5,0.5\nx,2,0.2,0.8\nx,3,0.7,0.3\n"
    metrics = "run,index,loss\nx,3,3\nx,2,2\nx,1,1\n"
    np.testing.assert_allclose(sweep(tmp_path, ratios, metrics).metrics[:, 0], [1, 2, 3])


def test_seven_and_seven_point_nought_are_one_run(tmp_path: Path) -> None:
    ratios = "index,code,prose\n7.0,0.5,0.5\n8.0,0.2,0.8\n9.0,0.7,0.3\n"
    assert len(sweep(tmp_path, ratios, "index,loss\n7,1\n8,2\n9,3\n").runs) == 3


def test_semicolons_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    read = sweep(tmp_path, "\ufeff" + RATIOS.replace(",", ";"), METRICS.replace(",", "\t"))
    assert read.domains == ["code", "prose"]
    assert len(read.runs) == 4


def test_shares_in_per_cent(tmp_path: Path) -> None:
    ratios = "run,code,prose\na,50,50\nb,20,80\nc,70,30\nd,90.1,9.9\n"
    read = sweep(tmp_path, ratios, METRICS)
    np.testing.assert_allclose(read.ratios[1], [0.2, 0.8])
    assert any("per cent" in note for note in read.notes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("e,0.5,0.2", "sum to 0.7, not to 1"),
        ("e,1.2,-0.2", "`prose` is below 0"),
        ("e,half,0.5", "`code` is not a number: half"),
        ("e,0.4,", "sum to 0.4 without `prose`, not to 1"),
        ("e,inf,0", "`code` is infinite"),
        ("f,0.5,0.5", "not in metrics.csv"),
    ],
)
def test_a_row_that_is_no_mixture_is_left_out_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    read = sweep(tmp_path, f"{RATIOS}{line}\n", f"{METRICS}e,1,1\n")
    assert read.runs == ["a", "b", "c", "d"]
    assert any(reason in item.reason and item.line == 6 for item in read.left_out)


def test_a_run_with_metrics_only_is_left_out(tmp_path: Path) -> None:
    read = sweep(tmp_path, RATIOS, f"{METRICS}e,1,1\n")
    assert [(item.run, item.file, item.line, item.reason) for item in read.left_out] == [
        ("e", "metrics.csv", 6, "not in ratios.csv")
    ]


def test_an_empty_share_is_nought_where_the_rest_sums_to_one(tmp_path: Path) -> None:
    read = sweep(tmp_path, RATIOS.replace("d,0.9,0.1", "d,1.0,"), METRICS)
    np.testing.assert_allclose(read.ratios[3], [1, 0])


def test_missing_metrics_stay_missing(tmp_path: Path) -> None:
    metrics = METRICS.replace("a,1,2", "a,,2").replace("b,1.5,1.8", "b,nan,NA")
    read = sweep(tmp_path, f"{RATIOS}e,0.4,0.6\n", f"{metrics}e,1,2\n")
    assert np.isnan(read.metrics[0, 0])
    assert read.metrics[0, 1] == 2
    assert read.runs == ["a", "c", "d", "e"]
    assert [item.reason for item in read.left_out] == ["none of its metrics is a number"]


def test_a_metric_with_too_few_values_is_not_used(tmp_path: Path) -> None:
    metrics = "run,good,thin\na,1,\nb,2,3\nc,3,\nd,4,\n"
    read = sweep(tmp_path, RATIOS, metrics)
    assert read.metric_names == ["good"]
    assert any("`thin` has 1 values" in note for note in read.notes)


def test_words_in_a_column_are_not_used_and_said(tmp_path: Path) -> None:
    read = sweep(
        tmp_path,
        "run,comment,code,prose\na,x,0.5,0.5\nb,y,0.2,0.8\nc,z,0.7,0.3\nd,z,0.6,0.4\n",
        "run,host,loss\na,h1,1\nb,h2,2\nc,h3,oops\nd,h4,1\n",
    )
    assert read.domains == ["code", "prose"]
    assert read.metric_names == ["loss"]
    assert read.runs == ["a", "b", "d"]
    assert any("`comment`" in note for note in read.notes)
    assert any("`host`" in note for note in read.notes)
    assert any("not a number in line 4" in note for note in read.notes)


@pytest.mark.parametrize(
    ("ratios", "metrics", "word"),
    [
        ("", METRICS, "ratios.csv: is empty"),
        ("run,code\n", METRICS, "no rows"),
        (RATIOS, "run,loss\n", "metrics.csv: has a header and no rows"),
        (RATIOS + "e,0.5\n", METRICS, "line 6 has 2 cells, the header 3"),
        (RATIOS.replace("prose", "code"), METRICS, "code: this column stands twice"),
        (RATIOS + "a,0.5,0.5\n", METRICS, "lines 2 and 6 are the same run"),
        (RATIOS + ",0.5,0.5\n", METRICS, "line 6 names no run"),
        (RATIOS.replace("run", "trial"), METRICS, "shares no column with metrics.csv"),
        (RATIOS, METRICS.replace("code_loss", "objective"), "cannot be called"),
        ("run,index\na,1\nb,2\nc,3\n", METRICS, "no column holds shares"),
        (RATIOS, "run,name\na,1\nb,2\nc,3\n", "no column holds a metric"),
        (
            RATIOS,
            "run,loss\nx,1\ny,2\nz,3\n",
            "only 0 runs have a mixture and a metric.*run x: not in ratios.csv",
        ),
        (RATIOS, "run,loss\na,1\nb,2\n", "only 2 runs"),
        (RATIOS, "run,l1,l2\na,1,\nb,2,\nc,,1\nd,,2\n", "no metric has a value in 3 rows"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, ratios: str, metrics: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        sweep(tmp_path, ratios, metrics)


def test_no_file_a_directory_and_no_text(tmp_path: Path) -> None:
    good = write(tmp_path / "good.csv", METRICS)
    with pytest.raises(UserError, match="no such file"):
        read_sweep(tmp_path / "none.csv", good)
    with pytest.raises(UserError, match="is a directory"):
        read_sweep(tmp_path, good)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="is not text"):
        read_sweep(tmp_path / "binary.csv", good)


def test_caps_as_shares(tmp_path: Path) -> None:
    read = read_caps(write(tmp_path / "caps.yaml", "code: 0.3\n"), DOMAINS)
    assert read.upper == {"code": 0.3}
    assert not read.tokens
    assert not read_caps(None, DOMAINS).upper


def test_caps_by_repetition(tmp_path: Path) -> None:
    text = "stage_tokens: 1e9\ndomains:\n  code: {tokens: 1e8, max_epochs: 4, used: 1e8}\n  prose: {tokens: 5e9}\n"
    read = read_caps(write(tmp_path / "caps.yaml", text), DOMAINS)
    assert read.upper == {"code": pytest.approx(0.3)}
    assert read.tokens == {"code": 1e8, "prose": 5e9}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cod: 0.3\n", "cod: no such domain; did you mean `code`"),
        ("code: 3e8\n", r"must lie in \[0, 1\]"),
        ("code: much\n", "must be a number"),
        ("code: true\n", "must be a number"),
        ("stage_tokens: 1e9\ndomains: {code: {token: 1}}\n", "domains.code.token: unknown key"),
        ("stage_tokens: 1e9\ndomains: {code: {max_epochs: 1}}\n", "domains.code.tokens: is missing"),
        ("domains: {code: {tokens: 1, max_epochs: 1}}\n", "stage_tokens: is missing"),
        ("stage_tokens: 1e9\ndomain: {}\n", "domain: unknown key"),
        ("stage_tokens: 1e9\ndomains: [code]\n", "domains.*must map"),
        ("stage_tokens: -1\ndomains: {code: {tokens: 1}}\n", "stage_tokens.*at least 1"),
        (
            "stage_tokens: 1e9\ndomains: {code: {tokens: 1e8, max_epochs: 1}, prose: {tokens: 1e8, max_epochs: 1}, "
            "maths: {tokens: 1e8, max_epochs: 1}}\n",
            "caps.yaml.*exceeds the 300,000,000",
        ),
        ("", "is empty; for example `code: 0.3`"),
        ("- 1\n", "must be a mapping.*; for example `code: 0.3`"),
    ],
)
def test_caps_that_are_wrong(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_caps(write(tmp_path / "caps.yaml", text), DOMAINS)


def test_domains_whose_names_yaml_reads_as_something_else(tmp_path: Path) -> None:
    names = ["no", "1", "007", "2024-05-01", "null", "1e3"]
    text = "".join(f"{name}: 0.5\n" for name in names)
    assert list(read_caps(write(tmp_path / "caps.yaml", text), names).upper) == names
    assert list(read_bounds(write(tmp_path / "b.yaml", text.replace("0.5", "[0, 1]")), names)[0]) == names
    assert read_prior(write(tmp_path / "prior.yaml", text), names, {}).domains == names
    with pytest.raises(UserError, match="the key '1' is given twice"):
        read_caps(write(tmp_path / "twice.yaml", "1: 0.5\n'1': 0.5\n"), names)


def test_bounds(tmp_path: Path) -> None:
    text = "code: [0.1, 0.4]\nprose: {min: 0.2}\nmaths: [null, 0.5]\n"
    lower, upper = read_bounds(write(tmp_path / "bounds.yaml", text), DOMAINS)
    assert lower == {"code": 0.1, "prose": 0.2, "maths": 0.0}
    assert upper == {"code": 0.4, "prose": 1.0, "maths": 0.5}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cod: [0, 1]\n", "did you mean `code`"),
        ("code: 0.4\n", r"must be \[least, greatest\]"),
        ("code: [0.5, 0.4]\n", "0 <= least <= greatest <= 1"),
        ("code: [0.5, 1.4]\n", "0 <= least <= greatest <= 1"),
        ("code: {least: 0.5}\n", r"must be \[least, greatest\]"),
        ("code: [a, b]\n", "must be a number"),
    ],
)
def test_bounds_that_are_wrong(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_bounds(write(tmp_path / "bounds.yaml", text), DOMAINS)


def test_priors(tmp_path: Path) -> None:
    tokens = {"code": 1.0, "prose": 2.0, "maths": 1.0}
    assert read_prior("uniform", DOMAINS, {})["code"] == pytest.approx(1 / 3)
    assert read_prior("proportional", DOMAINS, tokens)["prose"] == 0.5
    assert read_prior(None, DOMAINS, tokens)["prose"] == 0.5
    assert read_prior(None, DOMAINS, {"code": 1.0})["prose"] == pytest.approx(1 / 3)
    plain = write(tmp_path / "prior.yaml", "code: 3\nprose: 1\n")
    assert read_prior(plain, DOMAINS, {}).shares == {"code": 0.75, "prose": 0.25, "maths": 0.0}
    nested = write(tmp_path / "mixture.json", '{"mixture": {"code": 0.75, "prose": 0.25}}')
    assert read_prior(nested, DOMAINS, {}) == read_prior(plain, DOMAINS, {})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cod: 1\n", "cod: no such domain"),
        ("code: -1\n", "at least 0"),
        ("code: 0\n", "no domain has a share above 0"),
        ("code: .nan\n", "finite"),
    ],
)
def test_priors_that_are_wrong(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_prior(write(tmp_path / "prior.yaml", text), DOMAINS, {})


def test_a_prior_that_is_not_there() -> None:
    with pytest.raises(UserError, match="neither `uniform`"):
        read_prior("unifrom", DOMAINS, {})
    with pytest.raises(UserError, match="missing: prose, maths"):
        read_prior("proportional", DOMAINS, {"code": 1.0})


def test_objectives(tmp_path: Path) -> None:
    metrics = ["code_loss", "prose_loss"]
    plain = read_objective(write(tmp_path / "a.yaml", "code_loss: 2\n"), metrics, DOMAINS)
    assert plain.weights == {"code_loss": 2.0}
    text = "weights: {code_loss: 1}\ncurrent: {code: 1, prose: 1}\nno_worse_than: 0.01\nworst_case: true\n"
    full = read_objective(write(tmp_path / "b.yaml", text), metrics, DOMAINS)
    assert full.current is not None
    assert full.current.shares == {"code": 0.5, "prose": 0.5, "maths": 0.0}
    assert full.no_worse_than == 0.01
    assert full.worst_case
    by_metric = read_objective(
        write(tmp_path / "c.yaml", "no_worse_than: {code_loss: 0.1}\n"), metrics, DOMAINS
    )
    assert by_metric.no_worse_than == {"code_loss": 0.1}
    assert read_objective(None, metrics, DOMAINS).weights is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cod_loss: 1\n", "did you mean `code_loss`"),
        ("code_loss: -1\n", "at least 0"),
        ("code_loss: 0\n", "no metric has a weight above 0"),
        ("weights: 3\n", "must map metrics"),
        ("worst_case: maybe\n", "true or false"),
        (
            "code_loss: 1\nweights: {prose_loss: 1}\n",
            "code_loss: is a metric beside other keys; weights: {code",
        ),
        ("", "is empty; for example `code_loss: 1`"),
        ("weights: {code_loss: 1}\nweight: 3\n", "weight: unknown key; did you mean `weights`"),
        ("current: {cod: 1}\n", "current.cod: no such domain"),
        ("no_worse_than: {cod_loss: 1}\n", "no such metric"),
    ],
)
def test_objectives_that_are_wrong(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_objective(write(tmp_path / "objective.yaml", text), ["code_loss", "prose_loss"], DOMAINS)


def test_every_cell_is_read_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grows with the cells and not with rows by rows: whether the file is large shows in no other test."""
    rng, read = np.random.default_rng(0), {"cells": 0}
    shares, losses = rng.dirichlet(np.ones(4), 200), rng.normal(3, 0.1, (200, 6))
    said = csv_table.number

    def counted(cell: str, notation: csv_table.Notation | None = None) -> float | None:
        read["cells"] += 1
        return said(cell, notation)

    monkeypatch.setattr(csv_table, "number", counted)
    files = []
    for name, values in (("ratios", shares), ("metrics", losses)):
        head = ",".join(["run", *(f"{name}{k}" for k in range(values.shape[1]))])
        lines = [",".join([f"r{i}", *map(repr, row.tolist())]) for i, row in enumerate(values)]
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join([head, *lines]))
    assert len(read_sweep(*files).runs) == 200
    assert read["cells"] < 6 * (shares.size + losses.size + 400)
