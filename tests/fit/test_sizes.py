"""Runs of several model sizes: read, never pooled in silence, and made one law for the size asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opmix_ray.errors import UserError
from opmix_ray.exchange.csv_table import read_count
from opmix_ray.fit import fit_command, predict_command, read_sweep
from opmix_ray.fit.size_law import fit_sizes
from opmix_ray.fit.sizes import Scale, Scales, SizeColumns, count_words
from opmix_ray.laws import FittedLaw, fit_law
from opmix_ray.numerics.ridge import fit_corrections
from tests.fit.test_fit_cli import opmix

DOMAINS = ["web", "code", "books"]
METRICS = ["web_loss", "code_loss"]
SIZES = {"70M": 12, "160M": 6, "410M": 5}


def truth(ratios: np.ndarray, size: float, tilt: float = 0.0) -> np.ndarray:
    """Losses that are linear in log shares; larger models have lower ones, and steeper or flatter by `tilt`."""
    logs = np.log(ratios + 0.01)
    slopes = np.array([[-0.3, -0.05, -0.05], [-0.02, -0.4, 0.02]]) * (size / 70e6) ** -0.1
    slopes[:, 2] -= tilt * np.log(size / 70e6)
    return 1.5 + 20 * size**-0.15 + logs @ slopes.T


def rows(
    sizes: dict[str, int] = SIZES, seed: int = 0, tilt: float = 0.0, noise: float = 0.002
) -> tuple[Any, ...]:
    """Mixtures, losses and sizes; every size has its own mixtures."""
    rng = np.random.default_rng(seed)
    size = np.repeat([read_count(name) or 0.0 for name in sizes], list(sizes.values()))
    ratios = rng.dirichlet(np.ones(3), len(size))
    losses = np.vstack([truth(r[None], s, tilt) for r, s in zip(ratios, size, strict=True)])
    return ratios, losses + noise * rng.standard_normal(losses.shape), size


def write(
    place: Path, sizes: dict[str, int] = SIZES, column: str = "model_size", **more: list[Any]
) -> tuple[Path, Path]:
    """Both files, with a column of sizes in the second."""
    ratios, losses, _ = rows(sizes)
    names = [name for name, count in sizes.items() for _ in range(count)]
    heads: dict[str, list[Any]] = {column: names, **more}
    tables = (("ratios", DOMAINS, ratios, {}), ("metrics", METRICS, losses, heads))
    for name, header, values, extra in tables:
        lines = [",".join(["run", *extra, *header])]
        for i, row in enumerate(values):
            lines.append(
                ",".join([f"r{i}", *(str(cells[i]) for cells in extra.values()), *map(repr, row.tolist())])
            )
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place / "ratios.csv", place / "metrics.csv"


def given(ratios: Path, metrics: Path, output: Path, bootstrap: int) -> list[Any]:
    """Options of `opmix fit` with a fast law."""
    return [
        "--ratios",
        ratios,
        "--metrics",
        metrics,
        "--output",
        output,
        "--law",
        "ridge",
        "--bootstrap",
        bootstrap,
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("70M", 70e6), ("1.5B", 1.5e9), ("410000000", 410e6), ("4.1e8", 4.1e8), ("1,000,000", 1e6), ("20b tokens", 20e9),
     ("pythia-160m", 160e6), ("llama_1.3b_v2", 1.3e9), ("1 T", 1e12), ("410_000_000", 410e6)],
)  # fmt: skip
def test_counts_are_read(text: str, value: float) -> None:
    assert read_count(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["large", "-70M", "0", "", "70M or 160M", "nan", "inf", "1.2.3"])
def test_what_is_no_count_is_none(text: str) -> None:
    assert read_count(text) is None


def test_counts_in_words() -> None:
    assert [count_words(v) for v in (410e6, 1.5e9, 28656, 512, 999.9e6)] == [
        "410M",
        "1.5B",
        "28.7K",
        "512",
        "1B",
    ]


def test_sizes_are_not_pooled_in_silence(tmp_path: Path) -> None:
    files = write(tmp_path)
    with pytest.raises(
        UserError, match=r"several model sizes: 70M \(12 runs\).*--target-size 410M"
    ) as caught:
        read_sweep(*files)
    assert caught.value.key == "model_size"
    pooled = read_sweep(*files, sizes=SizeColumns(size="none"))
    assert pooled.scales is None
    assert pooled.metric_names == METRICS
    asked: list[str] = []
    sweep = read_sweep(*files, sizes=SizeColumns(ask=lambda question: not asked.append(question)))  # type: ignore[func-returns-value]
    assert len(asked) == 1
    assert "Fit for 410M?" in asked[0]
    assert sweep.scales is not None
    assert sweep.scales.words() == "70M (12 runs), 160M (6 runs), 410M (5 runs)"


@pytest.mark.parametrize(
    "column", ["size", "params", "n_params", "model", "Model Name", "tokens", "train_tokens"]
)
def test_columns_that_look_like_sizes_are_seen(tmp_path: Path, column: str) -> None:
    with pytest.raises(UserError, match=r"several (model sizes|numbers of tokens)"):
        read_sweep(*write(tmp_path, column=column))


@pytest.mark.parametrize("column", ["batch_size", "vocab_size", "seed", "tokens_per_second"])
def test_other_sizes_are_settings(tmp_path: Path, column: str) -> None:
    assert read_sweep(*write(tmp_path, column=column)).scales is None


def test_one_size_is_an_ordinary_sweep(tmp_path: Path) -> None:
    files = write(tmp_path, {"70M": 12})
    assert read_sweep(*files).scales is None
    with pytest.raises(UserError, match="no other size has 3 runs"):
        fit_command(*files, tmp_path / "out", size_column="model_size", law="ridge", bootstrap=0)


def test_one_mixture_has_metrics_at_several_sizes(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        "index,web,code,books\n" + "".join(f"{i},0.{i},0.{9 - i},0.1\n" for i in range(1, 9))
    )
    lines = [f"{i}.0,{size},{i + bonus}.5\n" for size, bonus in (("1M", 3), ("60M", 0)) for i in range(1, 9)]
    (tmp_path / "m.csv").write_text("index,size,loss\n" + "".join(lines))
    sweep = read_sweep(tmp_path / "r.csv", tmp_path / "m.csv", sizes=SizeColumns("size"))
    assert sweep.runs[:2] == ["1 at 1M", "1 at 60M"]
    assert len(sweep.runs) == 16
    assert sweep.scales is not None
    np.testing.assert_allclose(sweep.ratios[::2], sweep.ratios[1::2])
    np.testing.assert_allclose(sweep.metrics[::2, 0] - sweep.metrics[1::2, 0], 3)
    assert not sweep.left_out
    (tmp_path / "m.csv").write_text("index,size,loss\n" + "".join([*lines, lines[0]]))
    with pytest.raises(UserError, match="are the same run"):
        read_sweep(tmp_path / "r.csv", tmp_path / "m.csv", sizes=SizeColumns("size"))


def test_one_file_with_sizes_and_gaps(tmp_path: Path) -> None:
    ratios, losses, size = rows()
    lines = ["params,web,code,books,web_loss,code_loss"]
    lines += [",".join(map(str, [int(s), *r, *y])) for s, r, y in zip(size, ratios, losses, strict=True)]
    lines[3] = "," + lines[3].partition(",")[2]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    sweep = read_sweep(tmp_path / "all.csv", tmp_path / "all.csv", sizes=SizeColumns("params"))
    assert sweep.metric_names == METRICS
    assert [(item.line, item.reason) for item in sweep.left_out] == [(4, "its size is missing")]


def error(scales: tuple[Any, ...], target: float, small_only: bool = False, tilt: float = 0.0) -> float:
    """Largest error of the shape of predictions for a size, over the spread of the truth."""
    ratios, losses, size = scales
    fresh = np.random.default_rng(5).dirichlet(np.ones(3), 200)
    names: dict[str, Any] = {"domains": DOMAINS, "metric_names": METRICS, "law": "ridge"}
    if small_only:
        law = fit_law(ratios[size == 70e6], losses[size == 70e6], **names)
    else:
        law = fit_sizes(ratios, losses, Scales(size), Scale(target), **names)
    wanted = truth(fresh, target, tilt)
    off = law.predict(fresh) - wanted
    return float((off.std(axis=0) / wanted.std(axis=0)).max())


@pytest.mark.seconds
def test_few_large_runs_correct_many_small_ones() -> None:
    tilted = rows({"70M": 30, "410M": 12}, tilt=0.15)
    assert error(tilted, 410e6, tilt=0.15) < 0.5 * error(tilted, 410e6, small_only=True, tilt=0.15)
    few = rows({"70M": 30, "410M": 1})
    law = fit_sizes(
        few[0], few[1], Scales(few[2]), Scale(410e6), domains=DOMAINS, metric_names=METRICS, law="ridge"
    )
    np.testing.assert_allclose(
        law.predict(few[0][-1:]), few[1][-1:], atol=0.02
    )  # the level is that of the one run
    assert error(few, 410e6) < 0.3


def test_noise_at_the_large_size_corrects_nothing() -> None:
    noisy = rows({"70M": 30, "410M": 5}, noise=0.002)
    noisy[1][30:] += 0.3 * np.random.default_rng(1).standard_normal((5, 2))
    assert error(noisy, 410e6) < 0.35


def test_a_size_without_runs_follows_the_trends() -> None:
    ratios, losses, size = rows(noise=0.0005)
    law = fit_sizes(
        ratios, losses, Scales(size), Scale(1.4e9), domains=DOMAINS, metric_names=METRICS, law="ridge"
    )
    fresh = np.random.default_rng(5).dirichlet(np.ones(3), 100)
    wanted, nearest = truth(fresh, 1.4e9), truth(fresh, 410e6)
    off = np.abs(law.predict(fresh) - wanted).mean()
    assert off < 0.3 * np.abs(nearest - wanted).mean()
    inside = np.abs(law.objective(fresh) - wanted.mean(axis=1)) < 1.645 * law.objective_std(fresh)
    assert inside.mean() > 0.8


@pytest.mark.seconds
def test_intervals_hold_at_the_target() -> None:
    hits = []
    for seed in range(6):
        ratios, losses, size = rows({"70M": 24, "410M": 8}, seed=seed, tilt=0.1, noise=0.03)
        law = fit_sizes(
            ratios, losses, Scales(size), Scale(410e6), domains=DOMAINS, metric_names=METRICS, law="ridge"
        )
        fresh = np.random.default_rng(50 + seed).dirichlet(np.ones(3), 100)
        measured = (
            truth(fresh, 410e6, 0.1) + 0.03 * np.random.default_rng(seed).standard_normal((100, 2))
        ).mean(axis=1)
        hits.append(np.abs(law.objective(fresh) - measured) < 1.645 * law.objective_std(fresh))
    assert 0.78 < np.mean(hits) < 0.98


def test_a_law_for_a_size_is_a_law(tmp_path: Path) -> None:
    ratios, losses, size = rows()
    law = fit_sizes(
        ratios, losses, Scales(size), Scale(410e6), domains=DOMAINS, metric_names=METRICS, law="ridge"
    )
    again = FittedLaw.from_dict(json.loads(json.dumps(law.to_dict())))
    np.testing.assert_allclose(again.predict(ratios), law.predict(ratios))
    np.testing.assert_allclose(again.objective_std(ratios), law.objective_std(ratios))
    at, step = ratios[:1], 1e-6 * np.eye(3)
    slope = [(law.objective(at + s) - law.objective(at - s))[0] / 2e-6 for s in step]
    np.testing.assert_allclose(law.gradient(at)[0], slope, rtol=1e-4, atol=1e-6)
    drawn = law.redrawn(np.random.default_rng(0))
    assert 0 < np.abs(drawn.predict(ratios) - law.predict(ratios)).max() < 0.2


@pytest.mark.seconds
def test_evidence_tells_own_slopes_from_common_ones() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((40, 6)), rng.standard_normal((40, 2))
    ones = np.ones((40, 6))
    plain = fit_corrections(x, z, 0.8 * x + 0.05 * rng.standard_normal((40, 6)), ones)
    own = np.array([0.5, 0.6, 0.7, 0.9, 1.0, 1.1])
    each = fit_corrections(x, z, own * x + 0.05 * rng.standard_normal((40, 6)), ones)
    assert plain.common == pytest.approx(0.8, abs=0.02)
    assert np.exp(plain.theta[0]) < 0.05 < np.exp(each.theta[0])
    np.testing.assert_allclose(each.slopes[:, 0], own, atol=0.04)
    assert np.abs(plain.slopes[:, 1:]).max() < 0.03


@pytest.mark.seconds
def test_from_files_to_a_mixture_for_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ratios, metrics = write(tmp_path)
    files = given(ratios, metrics, tmp_path / "out", 10)
    assert opmix(monkeypatch, "fit", *files, "--target-size", "410M") == 0
    said = capsys.readouterr().out
    assert "sizes: 70M (12 runs), 160M (6 runs), 410M (5 runs); the mixture is for 410M" in said
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert found["inputs"]["target"] == {"size": 410e6, "tokens": None}
    assert [stage["rows"] for stage in found["details"]["sizes"]] == [12, 6, 5]
    assert found["quality"]["objective"]["rows"] == 5
    predicted = predict_command(tmp_path / "out", ratios, tmp_path / "p.csv")
    assert predicted["rows"] == 23
    page = (tmp_path / "out" / "fit.html").read_text()
    assert "for 410M" in page
    assert opmix(monkeypatch, "fit", *files, "--target-size", "2B") == 0
    assert (
        "no run is of 2B: its law is extrapolated from trends, 4.88 times beyond" in capsys.readouterr().out
    )


@pytest.mark.seconds
def test_sizes_and_tokens(tmp_path: Path) -> None:
    sizes = {"70M": 8, "160M": 8, "410M": 8}
    tokens = ["1B", "4B"] * 12
    files = write(tmp_path, sizes, tokens=tokens)
    found = fit_command(*files, tmp_path / "a", law="ridge", bootstrap=0, target_size="410M")
    assert found["target"] == {"size": 410e6, "tokens": 4e9}
    found = fit_command(
        *files, tmp_path / "b", law="ridge", bootstrap=0, target_size=410e6, target_tokens="1B"
    )
    assert found["target"] == {"size": 410e6, "tokens": 1e9}
    found = fit_command(
        *files, tmp_path / "c", law="ridge", bootstrap=0, target_size="1B", target_tokens="20B"
    )
    assert any("5 times beyond" in note for note in found["notes"])
    fixed = write(tmp_path, sizes, tokens=["1B"] * 8 + ["2B"] * 8 + ["6B"] * 8)
    found = fit_command(*fixed, tmp_path / "d", law="ridge", bootstrap=0, target_size="410M")
    assert found["target"] == {"size": 410e6, "tokens": None}  # the size tells the tokens


@pytest.mark.seconds
def test_the_kl_weight_is_in_units_of_one_size(tmp_path: Path) -> None:
    files, options = write(tmp_path, {"1M": 12, "1.4B": 6}), {"law": "ridge", "bootstrap": 0, "kl": "auto"}
    found = fit_command(*files, tmp_path / "a", target_size="1.4B", **options)
    alone = write(tmp_path, {"1M": 12})
    small = fit_command(*alone, tmp_path / "b", **options)
    assert max(found["kl_curve"]["weights"]) < max(small["kl_curve"]["weights"])


WRONG = {
    "no size, and none asked": ((), "several model sizes"),
    "a target that is no number": (("--target-size", "huge"), "must be a number above 0"),
    "a target below 0": (("--target-size=-410M",), "must be a number above 0"),
    "a column that is not there": (("--size-column", "model_sise"), "did you mean `model_size`"),
    "tokens without a column": (("--target-size", "410M", "--target-tokens", "1B"), "name it with --tokens-column"),
    "text in the column": (("--size-column", "kind"), "line 2 holds no number above 0"),
    "numbers below 0": (("--size-column", "below"), "line 2 holds no number above 0"),
    "one size only": (("--size-column", "same"), "no other size has 3 runs"),
    "far from one size": (("--size-column", "same", "--target-size", "1B"), "no trend leads there"),
    "far from two": (("--size-column", "two", "--target-size", "1B"), "a trend needs 3 sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sizes_are_one_line_and_code_two(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, said = WRONG[case]
    count = sum(SIZES.values())
    more = {"kind": ["large"] * count, "below": ["-5"] * count, "same": ["70M"] * count,
            "two": ["70M"] * 12 + ["160M"] * 11}  # fmt: skip
    ratios, metrics = write(tmp_path, **more)
    files = given(ratios, metrics, tmp_path / "out", 0)
    assert opmix(monkeypatch, "fit", *files, *options) == 2
    ended = capsys.readouterr()
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert not (tmp_path / "out").exists()
