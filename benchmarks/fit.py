"""How well and how fast mixing laws fit, on public sweeps, with peers beside them in the same run.

    python benchmarks/fit.py DATA            # DATA: the folders regmix/ and olmix/ with their CSV files
    python benchmarks/fit.py DATA --laws auto log-share --no-peers --json
    python benchmarks/fit.py DATA --quick    # two splits of every table, no large tables
    python benchmarks/fit.py                 # this repository's own trained mixtures and the timings alone

Tables: RegMix's runs (17 domains, 13 losses; the first rows are fitted and the 256 test runs ranked), olmix's (24
domains, 110 metrics; random splits) and the trained mixtures in results/fidelity (5 or 6 domains, 14 rows fitted).
Several sizes: many rows of a small run and few of a large one, the others of the large one ranked, beside laws of
either alone. That is trained mixtures after 150 and 500 steps, a drift that is made from RegMix's losses, and RegMix's
other sizes where DATA/regmix holds them (as `*_mixture_60m.csv` and `*_pile_loss_60m.csv`).
Nothing is chosen by the rows that are ranked. Figures are means over splits: Spearman of the average of all metrics,
and of single metrics where every one is fitted. Timings are of made tables, with intervals where they say so.

Peers, one fit per metric, or of the average alone where there are more than 16: the log-linear law by least squares
from random starts; the same with a Huber loss, as olmix fits it; LightGBM with RegMix's settings; scikit-learn's ridge
on log shares with its penalty by leave-one-out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from opmix_ray.decision.propose import propose
from opmix_ray.errors import UserError
from opmix_ray.fit.size_law import fit_sizes
from opmix_ray.fit.sizes import Scale, Scales
from opmix_ray.fit.sweep import read_sweep
from opmix_ray.laws import LAWS, fit_law
from opmix_ray.mixture import Mixture

STARTS = 20  # of the log-linear peers
HUBER = 0.02  # of olmix's fit
MANY = 16  # metrics above which peers fit the average alone
SPLITS = 10
SIZES = ("small", "large", "both")  # rows that a law is fitted to
FIDELITY = Path(__file__).parent / "results" / "fidelity"
SPEED = (
    (12, 6, 5, 0),
    (127, 24, 110, 40),
    (128, 64, 110, 0),
    (512, 64, 110, 0),
)  # rows, domains, metrics, refits

Predictor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Rows to fit and rows to rank: mixtures (n, D) and metrics (n, M) of both; names of domains and metrics."""

    x: np.ndarray
    y: np.ndarray
    new_x: np.ndarray
    new_y: np.ndarray
    domains: list[str]
    metrics: list[str]


@dataclass(frozen=True)
class TwoSizes(Split):
    """The same for a large run, beside rows of a small one."""

    small_x: np.ndarray
    small_y: np.ndarray


def peer_log_linear(x: np.ndarray, y: np.ndarray, loss: str = "linear") -> Predictor:
    """`exp(c) + exp(t . p)` by least squares, or with a Huber loss, from random starts."""
    rng = np.random.default_rng(0)

    def residual(theta: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(theta[0], -30, 30)) + np.exp(np.clip(x @ theta[1:], -30, 30)) - y

    starts = [np.concatenate([rng.uniform(-2, 1.5, 1), rng.normal(0, 1, x.shape[1])]) for _ in range(STARTS)]
    fits = (least_squares(residual, s, max_nfev=100, loss=loss, f_scale=HUBER) for s in starts)
    best = min(fits, key=lambda found: found.cost).x
    return lambda new: np.exp(best[0]) + np.exp(new @ best[1:])


def peer_lightgbm(x: np.ndarray, y: np.ndarray) -> Predictor:
    """RegMix's settings, without its early stopping on the runs that are predicted."""
    import lightgbm

    settings = {
        "objective": "regression",
        "learning_rate": 0.01,
        "seed": 42,
        "num_threads": 1,
        "verbosity": -1,
    }
    model = lightgbm.train(settings, lightgbm.Dataset(x, y), num_boost_round=1000)
    return lambda new: np.asarray(model.predict(new))


def peer_ridge(x: np.ndarray, y: np.ndarray) -> Predictor:
    """Ridge on `log(p + 0.01)`."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(10.0 ** np.arange(-5, 4)).fit(np.log(x + 0.01), y)
    return lambda new: np.asarray(model.predict(np.log(new + 0.01)))


PEERS: dict[str, Callable[[np.ndarray, np.ndarray], Predictor]] = {
    "peer: log-linear": peer_log_linear,
    "peer: log-linear, Huber": partial(peer_log_linear, loss="huber"),
    "peer: LightGBM": peer_lightgbm,
    "peer: ridge on log shares": peer_ridge,
}


def regmix(data: Path, quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """RegMix's tables: the first rows of the training runs, and the test runs."""
    train = read_sweep(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    test = read_sweep(data / "test_mixture_1m.csv", data / "test_pile_loss_1m.csv")
    for rows in (64,) if quick else (64, 128, 512):
        yield (
            f"RegMix, {rows} rows",
            [
                Split(
                    train.ratios[:rows], train.metrics[:rows], test.ratios, test.metrics, train.domains,
                    train.metric_names,
                )
            ],
        )  # fmt: skip


def random_splits(
    x: np.ndarray, y: np.ndarray, rows: int, splits: int, domains: list[str], metrics: list[str]
) -> list[Split]:
    """`rows` random rows to fit, the others to rank; so many times."""
    orders = [np.random.default_rng(seed).permutation(len(x)) for seed in range(splits)]
    return [
        Split(x[order[:rows]], y[order[:rows]], x[order[rows:]], y[order[rows:]], domains, metrics)
        for order in orders
    ]


def olmix(data: Path, quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """olmix's table, from its compressed files."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"dclm_{part}.csv" for part in ("ratios", "metrics")]
        for file in files:
            file.write_bytes(gzip.decompress((data / f"{file.name}.gz").read_bytes()))
        sweep = read_sweep(*files)
    for rows in (64,) if quick else (32, 64):
        splits = random_splits(
            sweep.ratios, sweep.metrics, rows, 2 if quick else SPLITS, sweep.domains, sweep.metric_names
        )
        yield f"olmix, {rows} rows", splits


def trained(quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """Mixtures that were trained for this project: one split of every file and length."""
    splits: list[Split] = []
    for file in sorted(FIDELITY.glob("*.json.gz")):
        kept = json.loads(gzip.decompress(file.read_bytes()))
        names = kept["domains"]
        for steps in sorted({steps for row in kept["truth"] for steps in row["losses"]}):
            rows = [row for row in kept["truth"] if steps in row["losses"]]
            x = np.array([[row["mixture"].get(name, 0.0) for name in names] for row in rows])
            y = np.array([[row["losses"][steps][name] for name in names] for row in rows])
            splits += random_splits(x / x.sum(axis=1, keepdims=True), y, 14, 1, names, names)
    yield "trained here, 14 rows", splits[:2] if quick else splits


def two_steps(quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """Mixtures trained here: 14 rows after 150 steps and some of them after 500, the others to rank after 500."""
    for few in (4,) if quick else (4, 8):
        splits: list[Split] = []
        for file in sorted(FIDELITY.glob("*.json.gz")):
            kept = json.loads(gzip.decompress(file.read_bytes()))
            names = kept["domains"]
            rows = [row for row in kept["truth"] if {"150", "500"} <= set(row["losses"])]
            x = np.array([[row["mixture"].get(name, 0.0) for name in names] for row in rows])
            x /= x.sum(axis=1, keepdims=True)
            small, y = (
                np.array([[row["losses"][s][n] for n in names] for row in rows]) for s in ("150", "500")
            )
            for seed in range(1 if quick else 3):
                order = np.random.default_rng(seed).permutation(len(x))
                old, new = order[:14], order[14:]
                splits.append(
                    TwoSizes(x[old[:few]], y[old[:few]], x[new], y[new], names, names, x[old], small[old])
                )
        yield f"150 to 500 steps, {few} rows", splits[:2] if quick else splits


def regmix_sizes(data: Path, quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """RegMix's runs of 1M and few of another size, where the folder holds them; ten random splits."""
    small = read_sweep(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    sizes = {file.stem.rpartition("_")[2] for file in data.glob("*_mixture_*.csv")} - {"1m"}
    for size in sorted(sizes):
        found = [
            read_sweep(file, file.with_name(file.name.replace("_mixture_", "_pile_loss_")))
            for file in sorted(data.glob(f"*_mixture_{size}.csv"))
        ]
        domains, metrics = small.domains, [n for n in small.metric_names if n in found[0].metric_names]
        x = np.vstack([one.ratios[:, [one.domains.index(n) for n in domains]] for one in found])
        y = np.vstack([one.metrics[:, [one.metric_names.index(n) for n in metrics]] for one in found])
        columns = [small.metric_names.index(n) for n in metrics]
        for many in (64, 512):
            for few in (8,) if quick else (8, 16, 32):
                yield (
                    f"RegMix {many} x 1M, {few} x {size}",
                    [
                        TwoSizes(
                            one.x, one.y, one.new_x, one.new_y, domains, metrics, small.ratios[:many],
                            small.metrics[:many, columns],
                        )
                        for one in random_splits(x, y, few, 2 if quick else SPLITS, domains, metrics)
                    ],
                )  # fmt: skip


def drifted(data: Path, quick: bool) -> Iterator[tuple[str, list[Split]]]:
    """RegMix's test runs as those of a large size that is made: slopes of metrics and effects of shares drift."""
    small = read_sweep(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    test = read_sweep(data / "test_mixture_1m.csv", data / "test_pile_loss_1m.csv")
    rng, spread, logs = np.random.default_rng(3), test.metrics.std(axis=0), np.log(test.ratios + 0.01)
    tilt = (logs - logs.mean(axis=0)) @ rng.standard_normal((logs.shape[1], len(spread)))
    slopes = 0.6 * rng.lognormal(0, 0.4, len(spread))
    y = 1 + slopes * (test.metrics - test.metrics.mean(axis=0)) + 0.21 * spread * tilt / tilt.std(axis=0)
    y += 0.05 * spread * rng.standard_normal(y.shape)
    for few in (8,) if quick else (8, 32, 64):
        splits = random_splits(test.ratios, y, few, 2 if quick else 4, test.domains, test.metric_names)
        yield (
            f"RegMix drifted, {few} rows",
            [
                TwoSizes(
                    one.x, one.y, one.new_x, one.new_y, one.domains, one.metrics, small.ratios[:64], small.metrics[:64]
                )
                for one in splits
            ],
        )  # fmt: skip


def by_sizes(split: Split, law: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The same as `by_law` with rows of two sizes: by the small ones, the large ones, or both."""
    assert isinstance(split, TwoSizes)
    if which == "large":
        return by_law(split, law)
    if which == "small":
        return by_law(replace(split, x=split.small_x, y=split.small_y), law)
    scales = Scales(np.repeat([1.0, 2.0], [len(split.small_x), len(split.x)]))
    fitted = fit_sizes(
        np.vstack([split.small_x, split.x]), np.vstack([split.small_y, split.y]), scales, Scale(2.0),
        domains=split.domains, metric_names=split.metrics, law=law,
    )  # fmt: skip
    return fitted.predict(split.new_x), fitted.objective(split.new_x)


def by_law(split: Split, law: str) -> tuple[np.ndarray, np.ndarray]:
    """Metrics (n, M) and their average (n,) of the rows to rank, by a law."""
    fitted = fit_law(split.x, split.y, domains=split.domains, metric_names=split.metrics, law=law)
    return fitted.predict(split.new_x), fitted.objective(split.new_x)


def by_peer(split: Split, fit: Callable[[np.ndarray, np.ndarray], Predictor]) -> tuple[Any, np.ndarray]:
    """The same by a peer; metrics are None where it fits the average alone."""
    if split.y.shape[1] > MANY:
        return None, fit(split.x, split.y.mean(axis=1))(split.new_x)
    predicted = np.column_stack([fit(split.x, column)(split.new_x) for column in split.y.T])
    return predicted, predicted.mean(axis=1)


def judge(splits: Sequence[Split], fit: Callable[[Split], tuple[Any, np.ndarray]]) -> dict[str, Any]:
    """Means over splits of rank correlations, and of what choosing by the prediction would have cost."""
    average, single, regret = [], [], []
    start = time.process_time()
    for split in splits:
        predicted, objective = fit(split)
        wanted = split.new_y.mean(axis=1)
        average.append(float(spearmanr(objective, wanted).statistic))
        regret.append(float(wanted[int(np.argmin(objective))] - wanted.min()))
        if predicted is not None:
            pairs = zip(predicted.T, split.new_y.T, strict=True)
            single.append(float(np.mean([spearmanr(a, b).statistic for a, b in pairs])))
    return {
        "average": float(np.mean(average)),
        "least": float(np.min(average)),
        "single": float(np.mean(single)) if single else None,
        "regret": float(np.mean(regret)),
        "seconds": (time.process_time() - start) / len(splits),
    }


def quality(
    tables: Sequence[tuple[str, list[Split]]], laws: Sequence[str], peers: bool
) -> Iterator[dict[str, Any]]:
    """One entry per table and fit."""
    for table, splits in tables:
        fits: dict[str, Any] = {law: partial(by_law, law=law) for law in laws}
        if isinstance(splits[0], TwoSizes):
            fits = {
                f"{law}, {which}": partial(by_sizes, law=law, which=which) for law in laws for which in SIZES
            }
        elif peers:
            fits |= {name: partial(by_peer, fit=fit) for name, fit in PEERS.items()}
        for name, fit in fits.items():
            yield {"table": table, "fit": name, **judge(splits, fit)}


def speed(laws: Sequence[str], quick: bool) -> Iterator[dict[str, Any]]:
    """Processor seconds of a fit with its cross-validation, and of a proposal with intervals where there are any."""
    for rows, domains, metrics, refits in SPEED[: 1 if quick else None]:
        rng = np.random.default_rng(0)
        x = rng.dirichlet(np.full(domains, 0.3), rows)
        worth = rng.dirichlet(np.full(domains, 0.5), metrics)
        y = 1 + (x @ worth.T + 0.02) ** -0.3
        y *= 1 + 0.01 * rng.standard_normal(y.shape)
        names = [f"d{i}" for i in range(domains)]
        for law in laws:
            start = time.process_time()
            fitted = fit_law(x, y, domains=names, metric_names=[f"m{i}" for i in range(metrics)], law=law)
            if refits:
                propose(
                    fitted, prior=Mixture.from_array(names, np.full(domains, 1 / domains)), bootstrap=refits
                )
            size = f"{rows} x {domains} x {metrics}" + (f", {refits} refits" if refits else "")
            yield {"table": size, "fit": law, "seconds": time.process_time() - start}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="directory that holds regmix/ and olmix/")
    parser.add_argument("--laws", nargs="+", default=["auto"], choices=["auto", *LAWS])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", default="", help="tables whose name holds this, and no timings")
    parser.add_argument("--quick", action="store_true", help="few splits, no large tables")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    found: dict[str, Any] = {"quality": [], "speed": []}
    say = (lambda line: None) if options.json else partial(print, flush=True)
    say(f"{'table':<24} {'fit':<26} average   least  single   regret  CPU seconds a fit")
    try:
        tables = [*trained(options.quick), *two_steps(options.quick)]
        if options.data is not None:
            tables += [
                *regmix(options.data / "regmix", options.quick),
                *drifted(options.data / "regmix", options.quick),
                *regmix_sizes(options.data / "regmix", options.quick),
                *olmix(options.data / "olmix", options.quick),
            ]
        tables = [table for table in tables if options.only in table[0]]
        for entry in quality(tables, options.laws, not options.no_peers):
            found["quality"].append(entry)
            single = "      -" if entry["single"] is None else f"{entry['single']:7.4f}"
            say(
                f"{entry['table']:<24} {entry['fit']:<26} {entry['average']:7.4f} {entry['least']:7.4f} {single} "
                f"{entry['regret']:8.4f} {entry['seconds']:8.1f}"
            )
        for entry in speed(options.laws, options.quick) if not options.only else ():
            found["speed"].append(entry)
            say(f"{entry['table']:<24} {entry['fit']:<26} {'':33} {entry['seconds']:8.1f}")
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
