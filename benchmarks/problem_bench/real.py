"""A problem for real: the product's own comparison at equal compute, three seeds."""

from __future__ import annotations

from opmix_ray.commands.options import progress_for
from opmix_ray.compare import compare
from opmix_ray.compare.summary import table_rows
from problem_bench.problem import BUILT, Problem

STRATEGIES = ("uniform", "proportional", "temperature", "odm", "opmix-published", "opmix")


def run(problem: Problem, seeds: int = 3) -> None:
    """Run every strategy and print the table."""
    config = problem.config(0)
    with progress_for(silent=False) as progress:
        content = compare(
            config, list(STRATEGIES), seeds=seeds, output=str(BUILT / problem.name / "compare"), resume=True,
            equal_compute=True, progress=progress,
        )  # fmt: skip
    for row in table_rows(content):
        print(row)
