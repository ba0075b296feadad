"""Which columns are metrics and shares, which way is better, and how numbers and runs are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.exchange.column_names import bookkeeping, is_higher_better
from opmix_ray.exchange.columns import maximised, turned
from opmix_ray.exchange.csv_table import Notation, number, read_notation
from opmix_ray.fit import Told, fit_command, read_sweep
from tests.fit.test_fit_cli import opmix

DOMAINS = ("web", "code", "books")
ROWS = 12
SHARES = np.random.default_rng(3).dirichlet(np.ones(3), ROWS)
LOSSES = 2 + 0.5 * (SHARES + 0.05) ** -0.3

Cells = dict[str, list[object]]


def write(path: Path, columns: Cells, separator: str = ",") -> Path:
    lines = [separator.join(columns)]
    lines += [separator.join(str(cell) for cell in cells) for cells in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def files(
    place: Path, more_shares: Cells | None = None, more_metrics: Cells | None = None
) -> tuple[Path, Path]:
    runs: list[object] = [f"r{i}" for i in range(ROWS)]
    shares: Cells = {name: [f"{v:.6f}" for v in SHARES[:, d]] for d, name in enumerate(DOMAINS)}
    losses: Cells = {f"{name}_loss": [f"{v:.5f}" for v in LOSSES[:, d]] for d, name in enumerate(DOMAINS)}
    ratios = write(place / "ratios.csv", {"run": runs, **shares, **(more_shares or {})})
    return ratios, write(place / "metrics.csv", {"run": runs, **losses, **(more_metrics or {})})


RNG = np.random.default_rng(0)
SETTINGS: dict[str, list[object]] = {
    "seed": list(range(ROWS)),
    "_step": [20000] * ROWS,
    "_runtime": RNG.uniform(100, 200, ROWS).round(3).tolist(),
    "lr": [4e-4, 2e-4] * (ROWS // 2),
    "config/optimizer.lr": RNG.uniform(0, 1, ROWS).tolist(),
    "hparams.weight": RNG.uniform(0, 1, ROWS).tolist(),
    "trainer/global_step": RNG.integers(1000, 2000, ROWS).tolist(),
    "learningRate": RNG.uniform(0, 1e-3, ROWS).tolist(),
    "Unnamed: 0.1": list(range(ROWS)),
    "tokens_seen": [1.5e9] * ROWS,
    "num_params": RNG.integers(10**6, 10**7, ROWS).tolist(),
    "alpha": [0.1, 0.2, 0.3] * (ROWS // 3),
    "counter": RNG.permutation(ROWS).tolist(),
    "jobs_done": RNG.integers(3, 90, ROWS).tolist(),
    "acc_stderr": RNG.uniform(0, 0.1, ROWS).tolist(),
    **{
        name: RNG.uniform(0, 1, ROWS).round(6).tolist()
        for name in (
            "lr_max",
            "lr/group0",
            "learning_rate_peak",
            "warmup_ratio",
            "total_flos",
            "tokens/sec",
            "billion_tokens",
            "temperature",
            "adam_beta_2",
            "web_loss_weight",
            "web_loss_ci_low",
            "gpu_util",
            "Relative Time (Process)",
        )
    },
    "same": [2.5] * ROWS,
    "host": ["a", "b"] * (ROWS // 2),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_tracker_exports_is_no_metric(tmp_path: Path, name: str) -> None:
    sweep = read_sweep(*files(tmp_path, more_metrics={name: SETTINGS[name]}))
    assert sweep.metric_names == ["web_loss", "code_loss", "books_loss"]
    left = [(column.name, column.file) for column in sweep.left_out_columns]
    assert left == [(name, "metrics.csv")]
    assert any(f"`{name}`" in note for note in sweep.notes)


@pytest.mark.parametrize(
    "name", [n for n in SETTINGS if n not in ("config/optimizer.lr", "hparams.weight", "same")]
)
def test_what_a_tracker_exports_is_no_share(tmp_path: Path, name: str) -> None:
    sweep = read_sweep(*files(tmp_path, more_shares={name: SETTINGS[name]}))
    assert sweep.domains == list(DOMAINS)
    assert len(sweep.runs) == ROWS
    np.testing.assert_allclose(sweep.ratios, SHARES, atol=1e-5)


def test_all_of_it_at_once_in_both_files(tmp_path: Path) -> None:
    sweep = read_sweep(*files(tmp_path, SETTINGS, SETTINGS))
    assert (sweep.domains, len(sweep.metric_names), len(sweep.runs)) == (list(DOMAINS), 3, ROWS)


def test_a_seed_of_nought_and_one_does_not_make_runs_vanish(tmp_path: Path) -> None:
    sweep = read_sweep(*files(tmp_path, more_shares={"seed": [0, 1, 2] * (ROWS // 3)}))
    assert len(sweep.runs) == ROWS


def test_one_table_given_twice(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    both = [
        f"{a},{b.partition(',')[2]}"
        for a, b in zip(*(p.read_text().split() for p in (ratios, metrics)), strict=True)
    ]
    (tmp_path / "all.csv").write_text("\n".join(both) + "\n")
    sweep = read_sweep(tmp_path / "all.csv", tmp_path / "all.csv")
    assert sweep.domains == list(DOMAINS)
    assert sweep.metric_names == ["web_loss", "code_loss", "books_loss"]


def test_losses_that_are_named_like_domains_or_by_step_stay_metrics(tmp_path: Path) -> None:
    more: Cells = {
        "web": LOSSES[:, 0].tolist(),
        "val_loss_step": LOSSES[:, 1].tolist(),
        "x": LOSSES[:, 2].tolist(),
    }
    assert len(read_sweep(*files(tmp_path, more_metrics=more)).metric_names) == 6


def test_a_domain_may_be_called_like_a_setting(tmp_path: Path) -> None:
    runs: list[object] = [f"r{i}" for i in range(ROWS)]
    shares: Cells = {
        "run": runs,
        **{n: SHARES[:, d].tolist() for d, n in enumerate(("time", "steps", "size"))},
    }
    losses: Cells = {
        "run": runs,
        **{n: LOSSES[:, d].tolist() for d, n in enumerate(("time", "steps", "size"))},
    }
    sweep = read_sweep(write(tmp_path / "r.csv", shares), write(tmp_path / "m.csv", losses))
    assert sweep.domains == sweep.metric_names == ["time", "steps", "size"]


def test_columns_that_are_named_are_taken_whatever_they_hold(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path, SETTINGS, SETTINGS)
    sweep = read_sweep(ratios, metrics, share_names=["web,code", "books"], metric_names=["*_loss", "seed"])
    assert sweep.domains == list(DOMAINS)
    assert sweep.metric_names == ["web_loss", "code_loss", "books_loss", "seed"]
    for wanted, word in (("wbe_loss", "did you mean `web_loss`"), ("host", "holds words")):
        with pytest.raises(UserError, match=word):
            read_sweep(ratios, metrics, metric_names=[wanted])


def test_a_file_of_settings_alone_is_refused(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    write(metrics, {"run": [f"r{i}" for i in range(ROWS)], "seed": list(range(ROWS)), "lr": [0.1] * ROWS})
    with pytest.raises(UserError, match=r"no column holds a metric.*`seed`.*--metric-columns"):
        read_sweep(ratios, metrics)


@pytest.mark.parametrize("change", [0.0, 4e-4])
def test_one_mixture_is_refused(tmp_path: Path, change: float) -> None:
    shares: Cells = {
        "web": [0.5 + change * (i % 2) for i in range(ROWS)],
        "code": [0.5 - change * (i % 2) for i in range(ROWS)],
    }
    _, metrics = files(tmp_path)
    ratios = write(tmp_path / "one.csv", {"run": [f"r{i}" for i in range(ROWS)], **shares})
    with pytest.raises(UserError, match=r"one.csv: all 12 runs have the same mixture"):
        read_sweep(ratios, metrics)


def test_two_mixtures_and_metrics_that_do_not_vary_are_refused(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    runs: list[object] = [f"r{i}" for i in range(ROWS)]
    two = write(tmp_path / "two.csv", {"run": runs, "web": [0.2, 0.8] * 6, "code": [0.8, 0.2] * 6})
    with pytest.raises(UserError, match="2 different mixtures"):
        read_sweep(two, metrics)
    same = write(tmp_path / "same.csv", {"run": runs, "loss": [2.0] * ROWS})
    with pytest.raises(UserError, match="it is 2 in every run"):
        read_sweep(ratios, same)
    with pytest.raises(UserError, match="every metric is the same in all runs"):
        read_sweep(ratios, same, metric_names=["loss"])


@pytest.mark.seconds
def test_a_domain_that_no_run_has_has_no_say(tmp_path: Path) -> None:
    plain = fit_command(*files(tmp_path), tmp_path / "a", law="log-share", bootstrap=0)
    (tmp_path / "prior.yaml").write_text("web: 1\ncode: 1\nbooks: 1\nnew: 5\n")
    more = files(tmp_path, more_shares={"new": [0.0] * ROWS})
    with_one = fit_command(*more, tmp_path / "b", law="log-share", prior=tmp_path / "prior.yaml", bootstrap=0)
    assert with_one["mixture"] == {**plain["mixture"], "new": 0.0}
    assert with_one["baseline_objective"] == plain["baseline_objective"]
    assert with_one["gain"] == plain["gain"]
    assert json.loads((tmp_path / "b" / "mixture.json").read_text())["mixture"]["new"] == 0


COMMA = Notation(decimal_comma=True)


@pytest.mark.parametrize(
    ("cell", "notation", "value"),
    [
        ("0,5", None, 0.5), ("0.5", None, 0.5), ("12,3 %", None, 0.123), ("12.3%", None, 0.123), ("5 %", None, 0.05),
        ("1.234,5", None, 1234.5), ("1,234.5", None, 1234.5), ("1 234,5", None, 1234.5), ("1'234.5", None, 1234.5),
        ("1,234", None, 1234.0), ("1,234", COMMA, 1.234), ("20.000", COMMA, 20000.0), ("0.004", COMMA, 0.004),
        ("\u22121,5e-3", None, -0.0015), ("1,000,000", None, 1e6), ("1.000.000", None, 1e6), ("1e3", None, 1000.0),
        ("+.5", None, 0.5), ("1,2,3", None, None), ("half", None, None), ("1.2.3", None, None), ("%", None, None),
        (",", None, None), ("1_000", None, None), ("0x10", None, None),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(cell: str, notation: Notation | None, value: float | None) -> None:
    assert number(cell, notation) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("cells", "comma"),
    [
        (["3,337", "0,5"], True), (["3,337", "3.5"], False), (["3,337", "2,123"], True), (["1.5", "2"], False),
        (["20.000", "0,1"], True), (["1,234.5", "2,345"], False),
    ],
)  # fmt: skip
def test_what_a_comma_means_is_read_from_the_column(cells: list[str], comma: bool) -> None:
    assert read_notation(cells).decimal_comma is comma


@pytest.mark.parametrize(
    ("separator", "shape"),
    [
        (";", lambda v: f"{v:.6f}".replace(".", ",")),
        ("\t", lambda v: f"{v:.6f}".replace(".", ",")),
        ("|", lambda v: f"{v:.6f}".replace(".", ",")),
        (",", lambda v: '"' + f"{v:.6f}".replace(".", ",") + '"'),
        (";", lambda v: f"{100 * v:.4f} %".replace(".", ",")),
        (";", lambda v: f"{100 * v:.4f}".replace(".", ",")),
        (",", lambda v: f"{100 * v:.4f}%"),
    ],
)
def test_shares_as_people_write_them(tmp_path: Path, separator: str, shape: Callable[[float], str]) -> None:
    _, metrics = files(tmp_path)
    runs: list[object] = [f"r{i}" for i in range(ROWS)]
    columns: Cells = {"run": runs, **{n: [shape(v) for v in SHARES[:, d]] for d, n in enumerate(DOMAINS)}}
    ratios = write(tmp_path / "people.csv", columns, separator)
    if separator == ";":
        ratios.write_text("sep=;\n" + ratios.read_text())
    sweep = read_sweep(ratios, metrics)
    np.testing.assert_allclose(sweep.ratios, SHARES, atol=1e-5)
    assert len(sweep.runs) == ROWS


def test_counts_of_tokens_are_told_from_shares(tmp_path: Path) -> None:
    _, metrics = files(tmp_path)
    counts: Cells = {n: [int(1e9 * v) for v in SHARES[:, d]] for d, n in enumerate(DOMAINS)}
    ratios = write(tmp_path / "counts.csv", {"run": [f"r{i}" for i in range(ROWS)], **counts})
    with pytest.raises(UserError, match=r"only 0 runs.*divide each line by its sum"):
        read_sweep(ratios, metrics)


def test_decimal_commas_between_commas_are_told(tmp_path: Path) -> None:
    _, metrics = files(tmp_path)
    (tmp_path / "bad.csv").write_text("run,web,code\nr0,0,5,0,5\n")
    with pytest.raises(UserError, match=r"line 2 has 5 cells, the header 3.*separate by semicolons"):
        read_sweep(tmp_path / "bad.csv", metrics)


@pytest.mark.parametrize(
    "names",
    [
        ("1e3", "1000"), ("007", "7"), ("1_0", "10"), ("0x1", "1"), ("Run", "run"), ("nan", "none"),
        ("inf", "infinity"),
        ("12345678901234567890", "12345678901234567891"), ("+7", "7"), ("7.0", "7"), ("1.0", "1.00"), ("-0", "0"),
    ],
)  # fmt: skip
def test_runs_whose_names_only_look_alike(tmp_path: Path, names: tuple[str, str]) -> None:
    ratios, metrics = files(tmp_path)
    for path in (ratios, metrics):
        path.write_text(path.read_text().replace("r0,", f"{names[0]},").replace("r1,", f"{names[1]},"))
    rows = metrics.read_text().splitlines()
    metrics.write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    sweep = read_sweep(ratios, metrics)
    assert len(sweep.runs) == ROWS
    np.testing.assert_allclose(sweep.metrics, LOSSES, atol=1e-4)


def test_a_run_that_only_looks_alike_is_not_taken_for_another(tmp_path: Path) -> None:
    ratios, metrics = files(tmp_path)
    ratios.write_text(ratios.read_text().replace("r0,", "1e3,"))
    metrics.write_text(metrics.read_text().replace("r0,", "1000,"))
    sweep = read_sweep(ratios, metrics)
    assert len(sweep.runs) == ROWS - 1
    assert {(item.run, item.reason) for item in sweep.left_out} == {
        ("1e3", "not in metrics.csv (`1000` there is another name)"),
        ("1000", "not in ratios.csv (`1e3` there is another name)"),
    }


HIGHER = [
    "acc", "mmlu/acc,none", "accuracy", "eval_f1", "BLEU", "rougeL", "squad_em",
           "score", "meanReward", "pass@1", "exact_match",
]  # fmt: skip


@pytest.mark.parametrize("name", HIGHER)
def test_names_that_say_higher_is_better(tmp_path: Path, name: str) -> None:
    assert is_higher_better(name)
    quoted = f'"{name}"'
    ratios, metrics = files(tmp_path, more_metrics={quoted: RNG.uniform(0.2, 0.4, ROWS).tolist()})
    with pytest.raises(UserError, match=r"higher is better.*--maximise"):
        fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0)
    summary = fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0, maximise=[name])
    assert summary["metrics"][name]["maximised"]


@pytest.mark.parametrize(
    "name", ["loss", "score_loss", "error_rate", "perplexity", "bpb", "code", "reward_nll", "embed"]
)
def test_names_that_do_not(name: str) -> None:
    assert not is_higher_better(name)


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_an_accuracy_is_raised(tmp_path: Path, unit: float) -> None:
    accuracy = unit * (0.2 + 0.3 * SHARES[:, 1])
    ratios, metrics = files(tmp_path)
    runs: list[object] = [f"r{i}" for i in range(ROWS)]
    write(metrics, {"run": runs, "acc": accuracy.tolist()})
    summary = fit_command(
        ratios, metrics, tmp_path / "out", law="linear", bootstrap=10, kl=0.0, maximise=["acc"]
    )
    assert summary["mixture"]["code"] > 0.95
    assert summary["metrics"]["acc"]["proposal"] > summary["metrics"]["acc"]["baseline"]
    assert summary["metrics"]["acc"]["proposal"] == pytest.approx(0.5 * unit, abs=0.03 * unit)
    assert summary["gain"] > 0
    said = json.loads((tmp_path / "out" / "mixture.json").read_text())["predicted"]["acc"]
    assert said == pytest.approx(summary["metrics"]["acc"]["proposal"])
    lowered = fit_command(
        ratios, metrics, tmp_path / "low", law="linear", bootstrap=0, kl=0.0, minimise=["acc"]
    )
    assert lowered["mixture"]["code"] < 0.05


def test_predictions_are_in_the_metrics_own_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = 0.2 + 0.3 * SHARES[:, 1]
    ratios, metrics = files(tmp_path)
    write(metrics, {"run": [f"r{i}" for i in range(ROWS)], "acc": accuracy.tolist()})
    sweep = ("--ratios", ratios, "--metrics", metrics, "--output", tmp_path / "out", "--law", "linear")
    assert opmix(monkeypatch, "fit", *sweep, "--maximise", "a*", "--bootstrap", 0) == 0
    assert opmix(monkeypatch, "predict", tmp_path / "out", "--ratios", ratios, "-o", tmp_path / "p.csv") == 0
    lines = (tmp_path / "p.csv").read_text().splitlines()[1:]
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines], accuracy, atol=0.02)


def test_a_person_is_asked_and_a_script_is_not(tmp_path: Path) -> None:
    accuracy = 0.2 + 0.3 * SHARES[:, 1]
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        return True

    ratios, metrics = files(tmp_path, more_metrics={"acc": accuracy.tolist()})
    summary = fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0, told=Told(ask=answer))
    assert asked == ["`acc`: is higher better?"]
    assert summary["metrics"]["acc"]["maximised"]


def test_the_direction_of_a_metric_without_weight_need_not_be_known(tmp_path: Path) -> None:
    more: Cells = {"acc": (0.2 + 0.3 * SHARES[:, 1]).tolist()}
    ratios, metrics = files(tmp_path, more_metrics=more)
    (tmp_path / "o.yaml").write_text("web_loss: 1\n")
    fit_command(ratios, metrics, tmp_path / "out", law="linear", bootstrap=0, objective=tmp_path / "o.yaml")
    (tmp_path / "o.yaml").write_text("weights: {web_loss: 1}\nno_worse_than: {acc: 0.01}\n")
    with pytest.raises(UserError, match=r"`acc`.*--maximise"):
        fit_command(
            ratios, metrics, tmp_path / "out", law="linear", bootstrap=0, objective=tmp_path / "o.yaml"
        )


def test_directions_that_exclude_each_other() -> None:
    values = np.ones((4, 2))
    with pytest.raises(UserError, match="both maximised and minimised"):
        maximised(["a", "b"], values, maximise=["a"], minimise=["*"])
    with pytest.raises(UserError, match="did you mean `acc`"):
        maximised(["acc", "loss"], values, maximise=["ac"])


def test_turning_twice_changes_nothing() -> None:
    values = RNG.uniform(0, 1, (5, 3))
    once = turned(values, ["a", "b", "c"], {"b": 1.0})
    np.testing.assert_allclose(once[:, 1], 1 - values[:, 1])
    np.testing.assert_allclose(turned(once, ["a", "b", "c"], {"b": 1.0}), values)


@pytest.mark.parametrize(
    "name",
    [
        "web_loss",
        "eval/lm/books-validation/CE loss",
        "mmlu_bpb",
        "stepmania",
        "code",
        "val_loss_epoch",
        "loss_seed_1",
        "nll_per_token",
        "loss@tokens",
        "ppl (lr 3e-4)",
    ],
)
def test_names_of_metrics_are_no_bookkeeping(name: str) -> None:
    assert bookkeeping(name) is None


@pytest.mark.seconds
def test_the_columns_are_said_first_and_nothing_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios, metrics = files(tmp_path, more_metrics={"seed": list(range(ROWS)), "_step": [2] * ROWS})
    options = (
        "--ratios",
        ratios,
        "--metrics",
        metrics,
        "-o",
        tmp_path / "out",
        "--law",
        "linear",
        "--bootstrap",
        10,
    )
    assert opmix(monkeypatch, "fit", *options) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["shares:  web, code, books", "metrics: web_loss, code_loss, books_loss"]
    assert said[2] == "left out of metrics.csv: `seed`: by its name it is no metric"
    assert said.index("the intervals follow") < next(
        i for i, line in enumerate(said) if "90 % interval" in line
    )
    assert opmix(monkeypatch, "fit", *options, "--json") == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert columns["metrics"] == ["web_loss", "code_loss", "books_loss"]
    assert [column["name"] for column in columns["left_out"]] == ["seed", "_step"]


UNITS: dict[str, Callable[[float], str]] = {
    "rounded": lambda share: f"{share:.3f}",
    "per cent": lambda share: f"{100 * share:.1f}",
    "signs": lambda share: f"{100 * share:.2f}%",
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("named", [True, False], ids=["runs named", "no names"])
def test_one_file_of_shares_and_metrics(tmp_path: Path, unit: str, named: bool) -> None:
    runs: Cells = {"run": [f"r{i}" for i in range(ROWS)]} if named else {}
    shares: Cells = {name: [UNITS[unit](v) for v in SHARES[:, d]] for d, name in enumerate(DOMAINS)}
    file = write(tmp_path / "sweep.csv", {**runs, **shares, "loss": [f"{v:.5f}" for v in LOSSES[:, 0]]})
    sweep = read_sweep(file, file)
    assert (sweep.domains, sweep.metric_names, len(sweep.runs)) == (list(DOMAINS), ["loss"], ROWS)
    np.testing.assert_allclose(sweep.ratios, SHARES, atol=2e-3)


def test_shares_beside_the_metrics_are_known_in_another_unit(tmp_path: Path) -> None:
    again: Cells = {name: [f"{100 * v:.1f}" for v in SHARES[:, d]] for d, name in enumerate(DOMAINS)}
    sweep = read_sweep(*files(tmp_path, more_metrics=again))
    assert sweep.metric_names == [f"{name}_loss" for name in DOMAINS]


def test_losses_named_after_domains_stay_metrics(tmp_path: Path) -> None:
    own: Cells = {name: [f"{v:.5f}" for v in LOSSES[:, d]] for d, name in enumerate(DOMAINS)}
    sweep = read_sweep(*files(tmp_path, more_metrics=own))
    assert set(DOMAINS) <= set(sweep.metric_names)


def test_one_file_whose_metric_holds_words_has_none(tmp_path: Path) -> None:
    shares: Cells = {name: list(SHARES[:, d]) for d, name in enumerate(DOMAINS)}
    file = write(tmp_path / "sweep.csv", {**shares, "loss": [f"{v:.5f} nats" for v in LOSSES[:, 0]]})
    with pytest.raises(UserError, match=r"no column holds a metric \(`loss`: it holds words"):
        read_sweep(file, file)


def test_a_metric_with_gaps_is_no_domain(tmp_path: Path) -> None:
    gaps: Cells = {"other": [2.5 + i / 9 if i % 3 == 0 else "" for i in range(ROWS)]}
    sweep = read_sweep(*files(tmp_path, more_shares=gaps))
    assert (sweep.domains, len(sweep.runs), sweep.left_out) == (list(DOMAINS), ROWS, [])
