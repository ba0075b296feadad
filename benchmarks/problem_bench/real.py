"""A problem for real: the product's own comparison at equal compute, three seeds."""

from __future__ import annotations

from collections.abc import Sequence

from opmix_ray.commands.options import progress_for
from opmix_ray.compare import compare
from opmix_ray.compare.summary import table_rows
from problem_bench.problem import BUILT, Problem

STRATEGIES = ("uniform", "proportional", "temperature", "odm", "opmix-published", "opmix")


def run(problem: Problem, seeds: int = 3, strategies: Sequence[str] = STRATEGIES) -> None:
    """Run every strategy and print the table; what was run before is not run again."""
    config = problem.config(0, sized=True)
    place = BUILT / problem.name / "compare"
    with progress_for(silent=False) as progress:
        content = compare(
            config, list(strategies), seeds=seeds, output=str(place), resume=place.exists(),
            equal_compute=True, progress=progress,
        )  # fmt: skip
    objective = {
        name: [row["objective"] for row in content["rows"] if row["strategy"] == name] for name in strategies
    }
    for row in table_rows(content):
        print(f"{sum(objective[row['strategy']]) / len(objective[row['strategy']]):.4f}", row)
