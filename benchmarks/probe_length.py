"""How long must probes be, and does it help to start them from the previous decision's factors?

    python benchmarks/probe_length.py [--domains N] [--seeds 0 1] [--small] [--second-only] [--json] [--quick]

Trains the demo's model on its own domains (or on N domains cut from them, see `many_domains.py`) and stops twice, as
for two decisions. At each it trains a probe per domain, from fresh factors, at the second also from the factors that
the first decision's probes ended with (A and B, or A alone), and measures after several numbers of steps, all within
one training. Fixed candidates are scored by adding up probes, on real held-out sequences. A ranking is compared with
that of the longest fresh probes on **another order of the data**, which no length and no start has in common with it.

Columns: Spearman for the average of the sets and for the median set; regret of the average, by the other order's
scores; the average's Spearman with the length before, on all sequences and on a few of each set; how well the law of
first order, `sum_c w_c L_m(probe c)`, ranks what adding up ranks, and its Spearman with the length before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from many_domains import build_config, make_probe_set, train_prefixes
from scipy.stats import spearmanr
from subjects import median

from opmix_ray.config import RunConfig, load_config
from opmix_ray.data.held_out import search_sets
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.decision.task import probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import BaseModel
from opmix_ray.model.interpolate import Interpolator
from opmix_ray.model.probe import Factors, Probe
from opmix_ray.paths import shipped
from opmix_ray.train.probes import ProbeRun

FEW = 4  # sequences of a set


@dataclass
class Scores:
    """Losses of the candidates by probes of one length: nats per token, (n, M)."""

    losses: np.ndarray
    few: np.ndarray  # on the first few sequences of each set

    @property
    def average(self) -> np.ndarray:
        """(n,)."""
        return self.losses.mean(axis=1)


class Decisions:
    """A model at several points of its training, and what can be asked of it there.

    Args:
        config: of the run.
        prepared: its data.
        candidates: number of mixtures scored beside the pure components.
        sequences: held-out, of each set.
    """

    def __init__(self, config: RunConfig, prepared: Prepared, candidates: int, sequences: int) -> None:
        self.config, self.prepared = config, prepared
        self.old = Mixture.proportional({n: float(d.train_tokens) for n, d in prepared.domains.items()})
        self.sets = search_sets(prepared, config.evaluation.sequences, sequences)
        self.size = len(prepared.domains)
        rng = np.random.default_rng([config.seed, 5])
        mixed = [rng.dirichlet(np.full(self.size, (1.0, 0.5, 3.0)[k % 3])) for k in range(candidates)]
        self.weights = np.vstack([np.eye(self.size), mixed])

    def probes(
        self, base: BaseModel, stream: str, lengths: list[int], starts: Mapping[str, Factors] | None = None
    ) -> dict[int, list[Probe]]:
        """Probes of every domain after each number of steps."""
        found: dict[int, list[Probe]] = {steps: [] for steps in lengths}
        for name in self.old.domains:
            task = probe_task(self.config, self.prepared, name, self.old, stream)
            run = ProbeRun(task, base, start=None if starts is None else starts[name])
            for steps in lengths:
                run.advance(steps)
                found[steps].append(run.probe())
        return found

    def score(self, base: BaseModel, probes: list[Probe]) -> Scores:
        """The candidates, pure components first."""
        model = Interpolator(
            make_probe_set(base, probes, self.old.domains), autocast=self.config.model.autocast
        )
        losses, few = [], []
        for w in self.weights:
            model.set(w)
            found = model.losses(self.sets, self.config.evaluation.batch_size)
            losses.append([loss.mean for loss in found.values()])
            few.append([loss.nats[:FEW].sum() / loss.tokens[:FEW].sum() for loss in found.values()])
        return Scores(np.array(losses), np.array(few))


def rank(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation."""
    return float(spearmanr(one, other).statistic)


def compared(
    found: Mapping[int, Scores], truth: Scores, weights: np.ndarray, size: int
) -> Iterator[dict[str, Any]]:
    """One row per length: see the module's columns; pure components are not ranked."""
    mixed = slice(size, None)
    true = truth.average[mixed]
    before: Scores | None = None
    for steps, scores in found.items():
        average = scores.average[mixed]
        linear = weights[mixed] @ scores.losses[:size]
        row = {
            "steps": steps,
            "average": rank(average, true),
            "median set": median(
                [rank(scores.losses[mixed, m], truth.losses[mixed, m]) for m in range(size)]
            ),
            "regret": float(true[np.argmin(average)] - true.min()),
            "first order": rank(linear.mean(axis=1), average),
        }
        if before is not None:
            row["before"] = rank(average, before.average[mixed])
            row["few, before"] = rank(scores.few[mixed].mean(axis=1), before.few[mixed].mean(axis=1))
            row["first order, before"] = rank(
                linear.mean(axis=1), (weights[mixed] @ before.losses[:size]).mean(axis=1)
            )
        before = scores
        yield row


def measured(config: RunConfig, ends: list[int], lengths: list[int], kept: int, arguments: Any) -> list[Any]:
    """All starts at both decisions; `kept` is the length that a decision would have had."""
    prepared = prepare(config)
    here = Decisions(config, prepared, arguments.candidates, arguments.sequences)
    bases = train_prefixes(config, prepared, here.old, ends)
    results = []
    before: dict[str, Factors] = {}
    for number, (end, base) in enumerate(zip(ends, bases, strict=True)):
        if arguments.second_only and not number:
            before = {p.name: p.factors for p in here.probes(base, "decision-0", [kept])[kept]}
            continue
        other = here.probes(base, f"other-{number}", lengths[-1:])[lengths[-1]]
        truth = here.score(base, other)
        starts: dict[str, Mapping[str, Factors] | None] = {"fresh": None}
        if before:
            starts["A and B"] = before
            starts["A alone"] = {n: _without_b(factors) for n, factors in before.items()}
        for start, factors in starts.items():
            began = time.monotonic()
            probes = here.probes(base, f"decision-{number}", lengths, factors)
            found = {steps: here.score(base, part) for steps, part in probes.items()}
            rows = list(compared(found, truth, here.weights, here.size))
            results.append(
                {
                    "step": end,
                    "start": start,
                    "rows": rows,
                    "spread": float(np.ptp(truth.average[here.size :])),
                }
            )
            print_rows(results[-1], time.monotonic() - began, arguments.json)
            if start == "fresh":
                before = {probe.name: probe.factors for probe in probes[kept]}
            if arguments.raw is not None:
                Path(arguments.raw).mkdir(parents=True, exist_ok=True)
                np.savez(
                    Path(arguments.raw) / f"{here.size}-{config.seed}-{end}-{start.replace(' ', '')}.npz",
                    weights=here.weights, lengths=lengths, truth=truth.losses, truth_few=truth.few,
                    losses=[s.losses for s in found.values()], few=[s.few for s in found.values()],
                )  # fmt: skip
    return results


def _without_b(factors: Factors) -> Factors:
    return {layer: (a, np.zeros_like(b)) for layer, (a, b) in factors.items()}


def print_rows(result: Mapping[str, Any], seconds: float, silent: bool) -> None:
    """A table."""
    if silent:
        return
    print(f"\nstep {result['step']}, start from {result['start']} ({seconds:.0f} s), ", end="")
    print(f"candidates differ by up to {result['spread']:.4f} nats per token")
    columns = (
        "average",
        "median set",
        "regret",
        "before",
        "few, before",
        "first order",
        "first order, before",
    )
    print("steps" + "".join(f"{column:>21}" for column in columns))
    for row in result["rows"]:
        print(
            f"{row['steps']:5d}" + "".join(f"{row.get(c, float('nan')):21.4f}" for c in columns), flush=True
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domains", type=int, help="cut from the demo's texts; none: the demo's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--sequences", type=int, default=16, help="held-out, of each set")
    parser.add_argument("--second-only", action="store_true", help="measure at the second decision alone")
    parser.add_argument(
        "--small", action="store_true", help="two layers, 64 wide, in place of the demo's model"
    )
    parser.add_argument("--raw", help="directory for every loss")
    parser.add_argument("--quick", action="store_true", help="barely trained")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ends, lengths, kept = [100, 200], [5, 10, 15, 25, 50], 25
    if arguments.quick:
        ends, lengths, kept, arguments.candidates, arguments.sequences = [2, 4], [1, 2], 2, 6, 2
    warnings.filterwarnings("ignore")
    results = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="probe-length-") as directory:
            if arguments.domains is None:
                config = load_config(shipped("examples") / "quickstart.yaml", [f"seed={seed}"])
            else:
                config = build_config(
                    arguments.domains, Path(directory), most_bytes=1_000_000, probe_steps=kept, seed=seed
                )
            if arguments.small:
                small = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
                config = config.model_copy(
                    update={
                        "model": config.model.model_copy(update={"config": {**config.model.config, **small}})
                    }
                )
            torch.set_num_threads(1 if arguments.quick else torch.get_num_threads())
            found = measured(config, ends, lengths, kept, arguments)
            results.append({"domains": arguments.domains, "seed": seed, "decisions": found})
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
