"""Do gradients of the candidates' losses make a better law than more candidates, at the same cost?

    python benchmarks/gradient_rows.py [--domains 5 16 32] [--costs 12 36 72] [--law own-share] [--json] [--quick]

`theta(w)` is linear in `w`, so a backward pass for each evaluation set gives its loss's derivative by every component
weight (`Interpolator.gradients`). Trains a small model and a probe per domain, measures candidates with and without
gradients, and fits a law on values, and on values and slopes together. A candidate with gradients counts
as many as its measured time is worth. Judged on mixtures that no law saw, half of them with small shares.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from many_domains import build_case
from scipy.stats import spearmanr
from subjects import median

from opmix_ray.decision.old_part import towards
from opmix_ray.laws import fit_law


@dataclass
class Rows:
    """Measured candidates.

    Args:
        weights: (n, C).
        losses: (n, M), nats per token.
        slopes: (n, M, C) derivatives by the components' weights; None: values alone.
    """

    weights: np.ndarray
    losses: np.ndarray
    slopes: np.ndarray | None = None

    def part(self, chosen: np.ndarray) -> Rows:
        """Some of the candidates."""
        slopes = None if self.slopes is None else self.slopes[chosen]
        return Rows(self.weights[chosen], self.losses[chosen], slopes)


def fitted(rows: Rows, data: np.ndarray, law: str) -> Callable[[np.ndarray], np.ndarray]:
    """The law of all sets; predictions from weights (n, C) to losses (n, M)."""
    domains = [f"d{d:02d}" for d in range(data.shape[1])]
    shares = rows.weights @ data
    slopes = None
    if rows.slopes is not None:
        slopes = towards(rows.slopes, rows.weights, data)
    found = fit_law(shares, rows.losses, domains=domains, metric_names=domains, law=law, slopes=slopes)
    return lambda candidates: found.predict(candidates @ data)


def agreement(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How well a law ranks mixtures that it never saw; regret in nats per token."""
    average, guess = true.mean(axis=1), predicted.mean(axis=1)
    single = [float(spearmanr(predicted[:, m], true[:, m]).statistic) for m in range(true.shape[1])]
    return {
        "average_spearman": float(spearmanr(guess, average).statistic),
        "median_spearman": median(single),
        "average_rmse": float(np.sqrt(((guess - average) ** 2).mean())),
        "regret": float(average[np.argmin(guess)] - average.min()),
    }


def measured(domains: int, rows: int, unseen: int, seed: int, quick: bool) -> dict[str, Any]:
    """Candidates with losses and slopes, unseen mixtures with losses, and what each costs in seconds."""
    case = build_case(
        domains,
        prefix=5 if quick else 100,
        probe_steps=2 if quick else 25,
        sequences=max(2, 64 // domains),
        most_bytes=200_000 if quick else 1_000_000,
        seed=seed,
    )
    model, names = case.interpolator(), list(case.sets)
    rng = np.random.default_rng(seed)
    near, far = (
        rng.dirichlet(np.ones(domains), unseen // 2),
        rng.dirichlet(np.full(domains, 0.4), unseen // 2),
    )
    weights = np.vstack([np.full(domains, 1 / domains), rng.dirichlet(np.ones(domains), rows - 1)])
    seconds: dict[str, list[float]] = {"value": [], "slopes": []}
    truth, losses, slopes = [], [], []
    for candidate in np.vstack([near, far]):
        model.set(candidate)
        began = time.perf_counter()
        found = model.losses(case.sets, case.config.evaluation.batch_size)
        seconds["value"].append(time.perf_counter() - began)
        truth.append([found[name].mean for name in names])
    for candidate in weights:
        model.set(candidate)
        began = time.perf_counter()
        both = model.gradients(case.sets, case.config.evaluation.batch_size)  # type: ignore[arg-type]
        seconds["slopes"].append(time.perf_counter() - began)
        losses.append([both[name][0].mean for name in names])
        slopes.append([both[name][1] for name in names])
    return {
        "data": case.probe_set.data,
        "unseen": np.vstack([near, far]),
        "truth": np.array(truth),
        "rows": Rows(weights, np.array(losses), np.array(slopes)),
        "price": median(seconds["slopes"]) / median(seconds["value"]),
    }


def compare(found: dict[str, Any], costs: list[int], repeats: int, law: str) -> Iterator[dict[str, Any]]:
    """Laws at equal cost, in forward passes over all sequences; means over draws of the candidates."""
    rows: Rows = found["rows"]
    for cost in costs:
        for kind in ("values", "values and slopes"):
            count = cost if kind == "values" else max(3, round(cost / found["price"]))
            if count > len(rows.losses):
                continue
            results = []
            for repeat in range(repeats):
                order = np.random.default_rng(repeat).permutation(len(rows.losses) - 1)[: count - 1] + 1
                part = rows.part(np.concatenate([[0], order]))
                if kind == "values":
                    part.slopes = None
                results.append(agreement(fitted(part, found["data"], law)(found["unseen"]), found["truth"]))
            means = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
            yield {"cost": cost, "kind": kind, "candidates": count} | means


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domains", type=int, nargs="+", default=[5, 16, 32])
    parser.add_argument("--costs", type=int, nargs="+", default=[12, 36, 72])
    parser.add_argument("--repeats", type=int, default=3, help="draws of the candidates")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--law", default="own-share", help="of a decision, or another one that takes slopes")
    parser.add_argument("--quick", action="store_true", help="five domains, barely trained")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.domains, arguments.costs, arguments.repeats = [5], [6], 1
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1 if arguments.quick else torch.get_num_threads())
    results = []
    for domains in arguments.domains:
        for seed in range(arguments.seeds):
            found = measured(
                domains, max(arguments.costs), 8 if arguments.quick else 64, seed, arguments.quick
            )
            rows = list(compare(found, arguments.costs, arguments.repeats, arguments.law))
            results.append({"domains": domains, "seed": seed, "price": found["price"], "rows": rows})
            if arguments.json:
                continue
            print(
                f"\n{domains} domains, seed {seed}: a candidate with slopes costs {found['price']:.1f} without"
            )
            print(
                f"{'cost':>5s} {'law on':18s} {'rows':>4s} {'average':>8s} {'median':>8s} {'rmse':>8s} {'regret':>8s}"
            )
            for row in rows:
                print(
                    f"{row['cost']:5d} {row['kind']:18s} {row['candidates']:4d} {row['average_spearman']:8.3f} "
                    f"{row['median_spearman']:8.3f} {row['average_rmse']:8.4f} {row['regret']:8.4f}"
                )
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
