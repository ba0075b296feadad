"""Problems on which the best mixture is known, and how much of what could be had a decision finds.

python benchmarks/problems.py list
python benchmarks/problems.py train NAME ...     # really trains 24 mixtures from one prefix, with two seeds
python benchmarks/problems.py judge [NAME ...]   # replays the product's decision on what is kept
python benchmarks/problems.py run NAME           # for real: opmix compare --equal-compute, three seeds
python benchmarks/problems.py design [DATA]      # regret of designed sweeps; DATA holds the folders regmix/ and olmix/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from problem_bench.problem import Problem, names  # noqa: E402

from opmix_ray.errors import UserError  # noqa: E402


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["list", "train", "judge", "run", "design"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="1: without the mixtures near a fitted optimum; 3: also what is decided today",
    )
    parser.add_argument(
        "--fit", action="store_true", help="design: by the law of opmix fit, which takes far longer"
    )
    parser.add_argument(
        "--again", type=int, default=0, help="judge: decide so often more from what was decided"
    )
    parser.add_argument("--runs", type=int, default=3, help="run: seeds of the comparison")
    parser.add_argument("--strategies", help="run: names, separated by commas; default: six")
    arguments = parser.parse_args()
    if arguments.what == "design":
        from problem_bench.sweeps import compare, compare_by_fit

        data = Path(arguments.names[0]) if arguments.names else None
        print(
            (compare_by_fit if arguments.fit else compare)(
                data, [int(seed) for seed in arguments.seeds.split(",")]
            )
        )
        return
    asked = arguments.names or names()
    if arguments.what == "list":
        for name in asked:
            problem = Problem.load(name)
            print(f"{name:14s} {problem.family:10s} {problem.about}")
    elif arguments.what == "train":
        from problem_bench.truth import train

        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        for name in asked:
            train(Problem.load(name), lambda line: print(line, flush=True), seeds, arguments.rounds)

    elif arguments.what == "judge":
        from problem_bench.judge import judge, table

        verdicts = {}
        for name in asked:
            problem = Problem.load(name)
            if not any(seed["runs"] for seed in problem.kept()["seeds"].values()):
                continue
            try:
                verdicts[name] = judge(problem, arguments.again)
            except UserError as error:  # its texts are refused today
                print(f"{name}: left out: {error}")
        print(table(verdicts))
    else:
        from problem_bench.real import STRATEGIES, run

        strategies = arguments.strategies.split(",") if arguments.strategies else STRATEGIES
        for name in asked:
            print(name)
            run(Problem.load(name), arguments.runs, strategies)


if __name__ == "__main__":
    main()
