"""How well and how fast mixing laws fit, on public sweeps, with peers beside them in the same run.

    python benchmarks/fit.py DATA            # DATA: the folders regmix/ and olmix/ with their CSV files
    python benchmarks/fit.py DATA --laws auto log-share --no-peers --json
    python benchmarks/fit.py DATA --quick    # two splits of every table, no large tables
    python benchmarks/fit.py                 # this repository's own trained mixtures and the timings alone

Tables: RegMix's runs (17 domains, 13 losses; the first rows are fitted and the 256 test runs ranked), olmix's (24
domains, 110 metrics; random splits) and the trained mixtures in results/fidelity (5 or 6 domains, 14 rows fitted).
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from opmix_ray.decision.propose import propose
from opmix_ray.errors import UserError
from opmix_ray.fit.sweep import read_sweep
from opmix_ray.laws import LAWS, fit_law
from opmix_ray.mixture import Mixture

STARTS = 20  # of the log-linear peers
HUBER = 0.02  # of olmix's fit
MANY = 16  # metrics above which peers fit the average alone
SPLITS = 10
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
        if peers:
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
    parser.add_argument("--quick", action="store_true", help="few splits, no large tables")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    found: dict[str, Any] = {"quality": [], "speed": []}
    say = (lambda line: None) if options.json else partial(print, flush=True)
    say(f"{'table':<24} {'fit':<26} average   least  single   regret  CPU seconds a fit")
    try:
        tables = list(trained(options.quick))
        if options.data is not None:
            tables += [
                *regmix(options.data / "regmix", options.quick),
                *olmix(options.data / "olmix", options.quick),
            ]
        for entry in quality(tables, options.laws, not options.no_peers):
            found["quality"].append(entry)
            single = "      -" if entry["single"] is None else f"{entry['single']:7.4f}"
            say(
                f"{entry['table']:<24} {entry['fit']:<26} {entry['average']:7.4f} {entry['least']:7.4f} {single} "
                f"{entry['regret']:8.4f} {entry['seconds']:8.1f}"
            )
        for entry in speed(options.laws, options.quick):
            found["speed"].append(entry)
            say(f"{entry['table']:<24} {entry['fit']:<26} {'':33} {entry['seconds']:8.1f}")
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
