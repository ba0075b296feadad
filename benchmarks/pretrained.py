"""Does counting say what a pretrained model learns, with and without asking the model what it knows already?

python benchmarks/pretrained.py [NAME]     # smollm2-a; `problems.py train NAME` trains its mixtures

Counted and trained losses of the mixtures that are kept, as differences from each set's mean over the mixtures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from problem_bench.judge import asked  # noqa: E402
from problem_bench.problem import Problem, as_array  # noqa: E402
from problem_bench.truth import Bench  # noqa: E402


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="smollm2-a")
    problem = Problem.load(parser.parse_args().name)
    seed, kept = next(iter(problem.kept()["seeds"].items()))
    bench, end = Bench.of(problem, int(seed)), str(problem.prefix + problem.steps)
    sets = list(bench.aims)
    shares = np.array([as_array(run["mixture"], bench.domains) for run in kept["runs"]])
    trained = np.array([[run["losses"][end][name] for name in sets] for run in kept["runs"]])
    away = trained - trained.mean(axis=0)
    print(f"{len(shares)} mixtures, {len(sets)} sets")
    for title, told in (("counting alone", {}), ("the model asked first", kept["prefix"]["told"])):
        known = asked(bench, {**kept["prefix"], "told": told}).known
        assert known is not None
        counted = np.column_stack([known.counts[name].loss(shares, known.data) for name in sets])
        seen = counted - counted.mean(axis=0)
        slopes = (away * seen).sum(axis=0) / np.square(seen).sum(axis=0)
        print(
            f"{title}: correlation {np.corrcoef(away.ravel(), seen.ravel())[0, 1]:.2f}, nats of the model for a nat "
            f"counted {(away * seen).sum() / np.square(seen).sum():.2f} "
            f"({', '.join(f'{name} {slope:.2f}' for name, slope in zip(sets, slopes, strict=True))}), "
            f"rank of the mean {spearmanr(counted.mean(axis=1), trained.mean(axis=1)).statistic:.2f}"
        )


if __name__ == "__main__":
    main()
