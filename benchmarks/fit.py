"""How well and how fast mixing laws fit, on RegMix's public runs and on tables of given size, with peers beside them.

    python benchmarks/fit.py DATA            # DATA: train_/test_mixture_1m.csv, train_/test_pile_loss_1m.csv
    python benchmarks/fit.py DATA --rows 64 128 --laws auto power --json
    python benchmarks/fit.py                 # the timings alone

Fits on the first n rows of the training runs and ranks the test runs, which nothing is chosen by. Peers are fitted in
the same run: the log-linear law by least squares from random starts, LightGBM with RegMix's settings, scikit-learn's
Gaussian process on sqrt(p), and the same on log(p + 0.01) with one length scale per domain.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from opmix_ray.errors import UserError
from opmix_ray.fit.sweep import Sweep, read_sweep
from opmix_ray.laws import LAWS, fit_law

ROWS = (64, 128, 512)
GOALS = {64: (0.980, 0.980), 128: (0.989, 0.990), 512: (0.993, 0.994)}  # mean of losses, average loss
SLOW_PEER = 128  # rows up to which scikit-learn's anisotropic process is fitted
STARTS = 20  # of the log-linear peer

Predictor = Callable[[np.ndarray], np.ndarray]


def peer_log_linear(x: np.ndarray, y: np.ndarray) -> Predictor:
    """`exp(c) + exp(t . p)` by least squares from random starts."""
    rng = np.random.default_rng(0)

    def residual(theta: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(theta[0], -30, 30)) + np.exp(np.clip(x @ theta[1:], -30, 30)) - y

    starts = [np.concatenate([rng.uniform(-2, 1.5, 1), rng.normal(0, 1, x.shape[1])]) for _ in range(STARTS)]
    best = min((least_squares(residual, s, max_nfev=100) for s in starts), key=lambda found: found.cost).x
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


def peer_process(features: Callable[[np.ndarray], np.ndarray], each: bool) -> Callable[..., Predictor]:
    """scikit-learn's Gaussian process with white noise on the log loss; `each`: one length scale per domain."""

    def fit(x: np.ndarray, y: np.ndarray) -> Predictor:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        length = np.ones(x.shape[1]) if each else 1.0
        kernel = ConstantKernel(1.0) * RBF(length, (1e-2, 1e3)) + WhiteKernel(1e-2)
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features(x), np.log(y))
        return lambda new: np.exp(model.predict(features(new)))

    return fit


PEERS: dict[str, Callable[..., Predictor]] = {
    "peer: log-linear": peer_log_linear,
    "peer: LightGBM": peer_lightgbm,
    "peer: GP sqrt(p)": peer_process(np.sqrt, each=False),
    "peer: ARD GP log(p+.01)": peer_process(lambda p: np.log(p + 0.01), each=True),
}


def judge(
    name: str, predicted: np.ndarray, objective: np.ndarray, test: Sweep, seconds: float
) -> dict[str, Any]:
    """Rank correlations on the test runs, and what choosing by the prediction would have cost.

    Args:
        predicted: (n, M) losses; objective: (n,) average loss.
    """
    average = test.metrics.mean(axis=1)
    each = [spearmanr(predicted[:, m], test.metrics[:, m]).statistic for m in range(test.metrics.shape[1])]
    return {
        "fit": name,
        "mean_of_losses": float(np.mean(each)),
        "least_of_losses": float(np.min(each)),
        "average_loss": float(spearmanr(objective, average).statistic),
        "regret": float(average[int(np.argmin(objective))] - average.min()),
        "seconds": seconds,
    }


def quality(data: Path, rows: Sequence[int], laws: Sequence[str], peers: bool) -> Iterator[dict[str, Any]]:
    """One entry per number of rows and fit."""
    train = read_sweep(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    test = read_sweep(data / "test_mixture_1m.csv", data / "test_pile_loss_1m.csv")
    for count in rows:
        x, y = train.ratios[:count], train.metrics[:count]
        for law in laws:
            start = time.perf_counter()
            fitted = fit_law(x, y, domains=train.domains, metric_names=train.metric_names, law=law)
            seconds = time.perf_counter() - start
            entry = judge(law, fitted.predict(test.ratios), fitted.objective(test.ratios), test, seconds)
            yield {"rows": count, **entry, "cv": fitted.quality["objective"], "details": fitted.details}
        for name, fit in PEERS.items() if peers else ():
            if "ARD" in name and count > SLOW_PEER:
                continue
            start = time.perf_counter()
            predicted = np.column_stack([fit(x, column)(test.ratios) for column in y.T])
            seconds = time.perf_counter() - start
            yield {"rows": count, **judge(name, predicted, predicted.mean(axis=1), test, seconds)}


def speed(laws: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Seconds for a decision's table, 6 components x 12 rows x 5 metrics, cross-validation included."""
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(6), 12)
    y = 2 + (x @ rng.dirichlet(np.ones(6), 5).T + 0.02) ** -0.3 + 0.005 * rng.standard_normal((12, 5))
    for law in laws:
        start = time.perf_counter()
        fit_law(x, y, domains=list("abcdef"), metric_names=list("vwxyz"), law=law)
        yield {"table": "6 x 12 x 5", "fit": law, "seconds": time.perf_counter() - start}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="directory of RegMix's CSV files")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--laws", nargs="+", default=["auto", *LAWS], choices=["auto", *LAWS])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    found: dict[str, Any] = {"speed": [], "quality": [], "goals": {str(n): g for n, g in GOALS.items()}}
    for entry in speed(options.laws):
        found["speed"].append(entry)
        if not options.json:
            print(f"{entry['table']:>12}  {entry['fit']:<24} {entry['seconds']:6.2f} s", flush=True)
    if options.data is not None:
        if not options.json:
            print("\n  n  fit                       mean of losses  least  average loss  regret   seconds")
        try:
            for entry in quality(options.data, options.rows, options.laws, not options.no_peers):
                found["quality"].append(entry)
                if not options.json:
                    print(
                        f"{entry['rows']:4d} {entry['fit']:<26} {entry['mean_of_losses']:13.4f} "
                        f"{entry['least_of_losses']:7.4f} {entry['average_loss']:12.4f} {entry['regret']:8.4f} "
                        f"{entry['seconds']:8.1f}",
                        flush=True,
                    )
        except UserError as error:
            sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
