"""The demo: a run that decides its own mixture, the same compute under uniform beside it, and two lines at the end.

python examples/demo.py [--seed 0] [--output runs/demo]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from opmix_ray import load_config
from opmix_ray.cluster.nursery import begin_ahead
from opmix_ray.commands.options import progress_for

HERE = Path(__file__).resolve().parent
TARGET = "addresses"


def main() -> None:
    """Both runs, then what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/demo")
    arguments = parser.parse_args()
    keys = [f"seed={arguments.seed}"]
    config = load_config(HERE / "demo.yaml", keys)
    begin_ahead(config)  # workers come up while this process imports torch and Ray
    from opmix_ray.cluster.connect import connected

    with connected(config):  # one Ray for both runs
        decided = _run([*keys, f"output={arguments.output}"])
        cost = decided["ledger"]["overhead"]
        steps = round(200 * (1 + cost))
        other = ["strategy=uniform", f"stages.0.steps={steps}"]
        plain = _run([*keys, f"output={arguments.output}-uniform", *other])
    after, before = (result["evaluations"][-1]["perplexity"][TARGET] for result in (decided, plain))
    print()
    print(
        f"target    perplexity {after:.1f} on text that no domain holds, with the decision; {before:.1f} with the same "
        f"compute under uniform: {100 * (after / before - 1):+.1f} %"
    )
    report = f"{arguments.output}/report.html"
    print(f"cost      the decision took {100 * cost:.1f} % of the training compute; report: {report}")


def _run(keys: list[str]) -> dict[str, Any]:
    from opmix_ray import run

    with progress_for(silent=False) as progress:
        return run(load_config(HERE / "demo.yaml", keys), overwrite=True, progress=progress)


if __name__ == "__main__":
    main()
