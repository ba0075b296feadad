"""Limits on sets, judged on problems whose mixtures were really trained: are they held, and what do they cost?

python benchmarks/limits.py [NAME ...] [--most 2] [--way 0.5 0.65]

For each of the first sets of a problem: a decision for the mean of the other sets, with that set under a limit in nats,
part of the way from its loss at the decision to what training under the mixture in force really led to. The decision is
the one that costs no FLOPs. What its mixture comes to is read off Gaussian processes on all trained mixtures, one for
each set (README: as doubtful as `doubt`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from problem_bench.judge import asked  # noqa: E402
from problem_bench.problem import Problem, as_array, names  # noqa: E402
from problem_bench.surrogate import Surrogate  # noqa: E402
from problem_bench.truth import Bench  # noqa: E402

from opmix_ray.config.objective import Limit, Objective, weighted  # noqa: E402
from opmix_ray.decision.rule import conclude, fit_decision  # noqa: E402
from opmix_ray.errors import UserError  # noqa: E402
from opmix_ray.mixture import Mixture  # noqa: E402

WAY = (0.5, 0.65)  # parts of the way down that a set must come


def decisions(problem: Problem, most: int, ways: Sequence[float] = WAY) -> list[dict[str, Any]]:
    """Each limited decision on one problem, with what it came to."""
    kept = problem.kept()
    seed = next(iter(kept["seeds"]))
    first = kept["seeds"][seed]
    bench = Bench.of(problem, int(seed))
    end = str(problem.prefix + problem.steps)
    runs = first["runs"]
    shares = np.array([as_array(run["mixture"], bench.domains) for run in runs])
    sets = list(bench.aims)
    if len(sets) < 2:
        return []
    true = {name: np.array([run["losses"][end][name] for run in runs]) for name in sets}
    read = {name: Surrogate(shares, true[name]) for name in sets}
    reached = first["prefix"]["losses"]
    now = {name: float(value) for name, value in reached[max(reached, key=int)].items() if name in sets}
    question = asked(bench, first["prefix"])
    found = []
    for name in sets[:most]:
        aim = weighted("loss", {other: float(other != name) for other in sets})

        def truly(mixture: dict[str, float], sets_: list[str]) -> float:
            at = Mixture(mixture).array(bench.domains)
            return float(np.mean([read[one](at)[0] for one in sets_]))

        def made(aim: Objective = aim, **changes: Any) -> Any:
            changed = replace(question, objective=aim, now=now, **changes)
            return conclude([], None, fit_decision([], changed), changed, index=0, step=0, stage="s")

        others = [other for other in sets if other != name]
        free = made().mixture
        current = question.current.shares
        for way in ways:
            ceiling = now[name] - way * (now[name] - truly(current, [name]))
            held = made(limits={name: Limit(name, nats=ceiling)})
            told = held.details["limits"][name]
            start = truly(current, others)
            found.append({
                "set": name, "way": way, "ceiling": ceiling, "got": truly(held.mixture, [name]),
                "free": truly(free, [name]), "promised": told["kept"], "binds": told["binds"],
                "gain": start - truly(held.mixture, others), "free gain": start - truly(free, others),
                "doubt": float(np.sqrt(np.mean((read[name].left_out() - true[name]) ** 2))),
            })  # fmt: skip
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=int, default=2, help="Sets of each problem that are limited in turn.")
    parser.add_argument(
        "--way", type=float, nargs="+", default=WAY, help="Parts of the way that a set must come."
    )
    arguments = parser.parse_args()
    print(
        f"{'problem':10s} {'set':10s} {'way':>4s} {'at most':>7s} {'free':>7s} {'limited':>7s} {'doubt':>6s} "
        f"{'promised':>8s} {'held':>5s} {'gain':>7s} {'of free':>7s}"
    )
    every: list[dict[str, Any]] = []
    for name in arguments.names or names():
        try:
            problem = Problem.load(name)
            if not any(seed["runs"] for seed in problem.kept()["seeds"].values()):
                continue
            rows = decisions(problem, arguments.most, arguments.way)
        except UserError as error:  # its texts are refused today
            print(f"{name}: left out: {error}")
            continue
        for row in rows:
            every.append(row)
            part = row["gain"] / row["free gain"] if row["free gain"] > 0.005 else float("nan")
            print(
                f"{name:10s} {row['set']:10s} {row['way']:4.2f} {row['ceiling']:7.3f} {row['free']:7.3f} "
                f"{row['got']:7.3f} {row['doubt']:6.3f} {'yes' if row['promised'] else 'no':>8s} "
                f"{'yes' if row['got'] <= row['ceiling'] else 'no':>5s} {row['gain']:7.4f} {part:7.2f}",
                flush=True,
            )
    print(summary(every))


def summary(rows: list[dict[str, Any]]) -> str:
    """How many limits were held, of those promised and of those that the unlimited mixture breaks; the price."""
    promised, others = ([row for row in rows if row["promised"] == yes] for yes in (True, False))
    broken = [row for row in promised if row["free"] > row["ceiling"]]
    room = [row for row in promised if row["free gain"] > 0.005]
    parts = [row["gain"] / row["free gain"] for row in room]
    whole = sum(row["gain"] for row in room) / max(1e-9, sum(row["free gain"] for row in room))

    def held(some: list[dict[str, Any]]) -> str:
        return f"{sum(row['got'] <= row['ceiling'] for row in some)} of {len(some)}"

    rest = (
        f"; gain of the rest {np.mean([row['gain'] for row in others]):.3f} nats on average" if others else ""
    )
    return (
        f"{len(rows)} decisions; promised {len(promised)}; held of those promised {held(promised)}, of those that the "
        f"unlimited mixture breaks {held(broken)}; of the rest {held(others)}{rest}\n"
        f"gain of the unlimited decision kept under a promised limit: median {np.median(parts):.2f}, "
        f"all together {whole:.2f}"
    )


if __name__ == "__main__":
    main()
