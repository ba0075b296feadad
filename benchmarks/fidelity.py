"""Does the search rank mixtures as real training does?

    python benchmarks/fidelity.py [--runs DIR] [--candidates 20] [--probe-steps 25] [--json]

Reads what `fidelity_runs.py` measured (`benchmarks/results/fidelity`: two sets of domains, three seeds, two horizons,
25 to 29 mixtures really trained in each; on one H100). For every law: Spearman correlation of its predictions with the
losses of the trained mixtures, per evaluation set (median and least; each in --json) and for their average, Pearson
for both, how far apart it thinks the mixtures' averages are over how far they are, and the regret of choosing the best
of the trained mixtures by the law, in per cent of the loss. Beside the laws stand a prediction that uses no
measurement at all (every set's loss falls with the log of its own share, all equally), choices without a law, and the
own-share form fitted to the trained mixtures themselves, which no prediction can be expected to pass. Means over seeds
and orders of the probes' data, with 95 % t-intervals over seeds.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr, t

from opmix_ray.decision.rule import EPS_STEPS, SLOPE_GROWTH, SLOPE_TRUST, TRANSFER_TRUST
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.laws.extrapolate import stage_growth

RESULTS = Path(__file__).parent / "results" / "fidelity"
PUBLISHED, DEFAULT = "published (log-linear)", "own-share, read for the stage (default)"
COLUMNS = (
    "median set",
    "least set",
    "median set, Pearson",
    "average",
    "average, Pearson",
    "spread",
    "regret %",
)


def load(directory: Path) -> list[dict[str, Any]]:
    """Every file of measurements."""
    files = sorted([*directory.glob("*.json.gz"), *directory.glob("*.json")])
    if not files:
        raise SystemExit(f"{directory}: no measurements; make them with benchmarks/fidelity_runs.py")
    return [json.loads((gzip.open if f.suffix == ".gz" else open)(f).read()) for f in files]


def table(measured: dict[str, Any], rows: list[dict[str, Any]]) -> np.ndarray:
    """Losses (n, M) of rows."""
    return np.array([[row["losses"][name] for name in measured["domains"]] for row in rows])


def truth(measured: dict[str, Any], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures really trained (n, D) and their losses (n, M)."""
    domains = measured["domains"]
    trained = [row for row in measured["truth"] if str(horizon) in row["losses"]]
    ratios = np.array([[row["mixture"].get(name, 0.0) for name in domains] for row in trained])
    return ratios, np.array([[row["losses"][str(horizon)][name] for name in domains] for row in trained])


def predictions(
    measured: dict[str, Any], block: dict[str, Any], horizon: int, candidates: int, ratios: np.ndarray
) -> dict[str, np.ndarray]:
    """Losses (n, M) of mixtures (n, D) as every law predicts them."""
    domains = measured["domains"]
    data = np.array([[probe.get(name, 0.0) for name in domains] for probe in block["data"]])
    rows = block["rows"][:candidates]
    shares = np.array([row["weights"] for row in rows]) @ data
    losses = table(measured, rows)
    old = [measured["old"][name] for name in domains]

    def law(name: str, extrapolate: Extrapolation | None = None) -> FittedLaw:
        return fit_law(
            shares, losses, domains=domains, metric_names=domains, law=name, extrapolate=extrapolate
        )

    read = Extrapolation(
        eps=EPS_STEPS / horizon,
        growth=stage_growth(SLOPE_GROWTH, EPS_STEPS, horizon, block["steps"]),
        slope_trust=SLOPE_TRUST,
        transfer_trust=TRANSFER_TRUST,
        anchor=old,
    )
    found = {
        PUBLISHED: law("log-linear"),
        "log-share as fitted": law("log-share"),
        "log-share, eps x 0.01": law("log-share", Extrapolation(eps_ratio=0.01, anchor=old)),
        "own-share as fitted": law("own-share"),
        DEFAULT: law("own-share", read),
    }
    return {name: fitted.predict(ratios) for name, fitted in found.items()}


def by_set(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman and Pearson of every set, (2, M)."""
    return np.array(
        [
            [kind(p, t).statistic for p, t in zip(predicted.T, true.T, strict=True)]
            for kind in (spearmanr, pearsonr)
        ]
    )


def judge(predicted: np.ndarray, true: np.ndarray) -> list[float]:
    """The numbers of `COLUMNS`."""
    single, straight = by_set(predicted, true)
    ours, theirs = predicted.mean(axis=1), true.mean(axis=1)
    return [
        float(np.median(single)),
        float(min(single)),
        float(np.median(straight)),
        float(spearmanr(ours, theirs).statistic),
        float(pearsonr(ours, theirs).statistic),
        float(ours.std() / theirs.std()),
        regret(theirs, int(np.argmin(ours))),
    ]


def regret(average: np.ndarray, chosen: int) -> float:
    """By how many per cent the chosen mixture's average loss is above the best one's."""
    return float(100 * (average[chosen] / average.min() - 1))


def own_form(ratios: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The own-share form fitted to the trained mixtures themselves."""
    names = [str(d) for d in range(ratios.shape[1])]
    return fit_law(ratios, losses, domains=names, metric_names=names, law="own-share").predict(ratios)


def overhead(measured: dict[str, Any], block: dict[str, Any], horizon: int, candidates: int) -> float:
    """FLOPs of probes and candidates over those of the steps served; a forward pass is a third of a step."""
    tokens = sum(measured["sequences"].values()) * measured["seq_len"] * candidates
    step = measured["batch_size"] * measured["seq_len"]
    spent = block["flops"] + tokens * measured["train_flops_per_token"] / 3
    return float(spent / (horizon * step * measured["train_flops_per_token"]))


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per data set, horizon and law."""
    collected: dict[tuple[str, int, str], dict[int, list[list[float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    names: dict[str, list[str]] = {}
    single: dict[tuple[str, int, str], list[np.ndarray]] = defaultdict(list)
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    for measured in load(Path(arguments.runs)):
        data, seed = Path(measured["data"]).name, measured["seed"]
        horizons = sorted({int(h) for row in measured["truth"] for h in row["losses"]})
        for horizon in horizons:
            ratios, losses = truth(measured, horizon)
            average = losses.mean(axis=1)
            eps = 2 / horizon

            def note(law: str, numbers: list[float], key: Any = (data, horizon), seed: int = seed) -> None:
                collected[(*key, law)][seed].append(numbers)

            for block in measured["probes"]:
                if block["steps"] != arguments.probe_steps:
                    continue
                costs[data, horizon].append(overhead(measured, block, horizon, arguments.candidates))
                for law, predicted in predictions(
                    measured, block, horizon, arguments.candidates, ratios
                ).items():
                    note(law, judge(predicted, losses))
                    single[data, horizon, law].append(by_set(predicted, losses))
            note("no measurement: -log(own share)", judge(-np.log(ratios + eps), losses))
            note("own-share fitted to the truth", judge(own_form(ratios, losses), losses))
            nothing = [float("nan")] * (len(COLUMNS) - 1)
            names[data] = measured["domains"]
            note("choice: mixture in force (proportional)", [*nothing, regret(average, 0)])
            note("choice: uniform", [*nothing, regret(average, 1)])
            note(
                "choice: at random",
                [*nothing, float(np.mean([regret(average, k) for k in range(len(average))]))],
            )
    return [
        {
            "data": data,
            "horizon": horizon,
            "law": law,
            "seeds": {
                seed: dict(zip(COLUMNS, np.mean(rows, axis=0).tolist(), strict=True))
                for seed, rows in by.items()
            },
            "sets": {
                name: dict(zip(("spearman", "pearson"), numbers, strict=True))
                for name, numbers in zip(
                    names[data], np.mean(single[data, horizon, law], axis=0).T.tolist(), strict=True
                )
            }
            if (data, horizon, law) in single
            else {},
            "overhead": float(np.mean(costs[data, horizon])),
        }
        for (data, horizon, law), by in collected.items()
    ]


def summary(entry: dict[str, Any], column: str) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % t-interval."""
    values = np.array([numbers[column] for numbers in entry["seeds"].values()])
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(
        t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default=str(RESULTS), help="directory that fidelity_runs.py wrote")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--probe-steps", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = compare(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    for data, horizon in dict.fromkeys((entry["data"], entry["horizon"]) for entry in found):
        group = [entry for entry in found if (entry["data"], entry["horizon"]) == (data, horizon)]
        print(f"\n{data}, {horizon} steps after the decision, {len(group[0]['seeds'])} seeds, ", end="")
        print(
            f"{arguments.candidates} candidates, probes and candidates {group[0]['overhead']:.0%} of these steps"
        )
        print(f"{'':42}" + "".join(f"{column:>20}" for column in COLUMNS))
        for entry in group:
            cells = []
            for column in COLUMNS:
                mean, half = summary(entry, column)
                cells.append("" if np.isnan(mean) else f"{mean:.3f} ± {half:.3f}")
            print(f"{entry['law']:42}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
