"""Does the search rank mixtures as real training does? Trains mixtures for real and compares.

    python benchmarks/fidelity.py [--data DIR] [--mixtures 12] [--prefix 200] [--steps 200] [--seeds 1] [--json]

A prefix is trained under the proportional mixture. One decision is made on it, with all parts of the product. Then
every mixture of a list (in force, uniform, our proposal, the published law's, and random ones) is trained for real
from the prefix. Reported: rank correlation between predicted and true loss, by law, per evaluation set and for the
average; regret of each way of choosing against the best mixture trained; cost of the decision over the steps served.
`--data DIR` takes every `*.jsonl*` in a directory as a domain (column `text`); else the demo's domains.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from opmix_ray.config import ProposalConfig, RunConfig, load_config
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.laws import Extrapolation, FittedLaw, fit_law
from opmix_ray.mixture import Mixture
from opmix_ray.model.flops import train_flops
from opmix_ray.resources import shipped
from opmix_ray.run.cluster import connected
from opmix_ray.run.decision import Situation, make_decision
from opmix_ray.run.ledger import Ledger
from opmix_ray.run.progress import PlainProgress, Progress
from opmix_ray.run.task import load_weights
from opmix_ray.search.propose import propose
from opmix_ray.search.rows import RowLog
from opmix_ray.storage import Storage
from opmix_ray.train.loop import Segment
from opmix_ray.train.trainer import run_segment

LAWS: dict[str, tuple[str, float | None]] = {
    "published (log-linear)": ("log-linear", None),
    "log-share as fitted": ("log-share", None),
    "log-share, eps x 0.1": ("log-share", 0.1),
    "log-share, eps x 0.01 (default)": ("log-share", 0.01),
}


def configuration(arguments: argparse.Namespace, seed: int, output: str) -> RunConfig:
    """The demo's model and settings on the domains asked for."""
    config = load_config(
        shipped("examples") / "quickstart.yaml",
        [
            f"seed={seed}",
            f"search.trials={arguments.candidates}",
            "search.sequences=32",
            "train.schedule.kind=constant",
            f"probe.steps={arguments.probe_steps}",
            f"stages.0.steps={arguments.steps}",
        ],
    ).model_copy(update={"output": output})
    if arguments.data is None:
        return config
    files = sorted(Path(arguments.data).glob("*.jsonl*"))
    one = next(iter(config.data.domains.values()))
    domains = {
        file.name.partition(".")[0]: one.model_copy(update={"path": str(file.absolute()), "max_epochs": None})
        for file in files
    }
    tokenizer = config.tokenizer.model_copy(update={"path": None, "train_vocab_size": 4096})
    data = config.data.model_copy(update={"domains": domains})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def train(
    config: RunConfig,
    prepared: Prepared,
    name: str,
    mixture: Mixture,
    start: int,
    steps: int,
    checkpoint: str | None,
) -> tuple[str, dict[str, float]]:
    """Train for real; the checkpoint, and the loss of every evaluation set."""
    segment = Segment(
        name=name,
        start=start,
        end=start + steps,
        stage="fidelity",
        stage_start=0,
        stage_steps=start + steps,
        mixture=mixture.shares,
        evaluate_at=(start + steps,),
        output=config.output_uri(),
        checkpoint=checkpoint,
        seed=config.seed,
        model=config.model,
        train=config.train,
        evaluation=config.evaluation.model_copy(update={"sequences": 128}),
        sequences_searched=config.search.sequences,
        prepared=prepared,
    )
    result = run_segment(segment, lambda *_: None)
    return result.checkpoint, result.state.rows[-1]["losses"]


def one_seed(arguments: argparse.Namespace, seed: int, progress: Progress) -> dict[str, Any]:
    """Prefix, decision, real training of every mixture, comparison."""
    with tempfile.TemporaryDirectory(prefix="fidelity-") as output:
        config = configuration(arguments, seed, output)
        prepared = prepare(config)
        tokens = {name: float(domain.train_tokens) for name, domain in prepared.domains.items()}
        old = Mixture.proportional(tokens)
        storage = Storage(output)
        checkpoint, _ = train(config, prepared, "prefix", old, 0, arguments.prefix, None)
        ledger = Ledger()
        situation = Situation(
            index=0,
            step=arguments.prefix,
            stage="fidelity",
            space="simplex",
            current=old,
            model=storage.download(f"{checkpoint}/model"),
            tokens_left=arguments.steps * config.train.batch_size * prepared.seq_len,
            tokens_used={},
        )
        decision = make_decision(config, prepared, storage, situation, progress, ledger)
        rows = RowLog(storage.child("decisions/000"), list(tokens), list(config.objective())).rows
        candidates = [row for row in rows if row.run != "proposal" and row.usable]
        laws = {name: _law(config, candidates, old, *how) for name, how in LAWS.items()}
        proposals = {name: _proposal(law, old) for name, law in laws.items()}
        mixtures = {"in force": old, "uniform": Mixture.uniform(tokens)} | proposals
        rng = np.random.default_rng([seed, 11])
        while len(mixtures) < arguments.mixtures + 2:
            mixtures[f"random {len(mixtures)}"] = Mixture.from_array(
                tokens, rng.dirichlet(np.ones(len(tokens)))
            )
        truth = {}
        for number, (name, mixture) in enumerate(mixtures.items()):
            _, truth[name] = train(
                config, prepared, f"real-{number:02d}", mixture, arguments.prefix, arguments.steps, checkpoint
            )
            progress.message(f"{name}: {_average(truth[name]):.4f} nats per token")
        model = load_weights(config, prepared, storage.download(f"{checkpoint}/model"))
        served = train_flops(model, float(situation.tokens_left), prepared.seq_len)
        spent = sum(ledger[purpose]["flops"] for purpose in ("probes", "search", "fit"))
    return {
        "seed": seed,
        "kept": decision.kept,
        "overhead": spent / served,
        "laws": {name: _agreement(law, mixtures, truth) for name, law in laws.items()},
        "regret": _regrets(laws, mixtures, truth),
        "truth": {name: _average(losses) for name, losses in truth.items()},
        "mixtures": {name: mixture.shares for name, mixture in mixtures.items()},
    }


def _law(config: RunConfig, rows: list[Any], old: Mixture, law: str, ratio: float | None) -> FittedLaw:
    domains, sets = old.domains, list(config.objective())
    extrapolate = None if ratio is None else Extrapolation(eps_ratio=ratio, anchor=old.array().tolist())
    return fit_law(
        np.array([[row.ratios[name] for name in domains] for row in rows]),
        np.array([[row.losses[name] for name in sets] for row in rows]),
        domains=domains,
        metric_names=sets,
        law=law,
        objective=config.objective(),
        extrapolate=extrapolate,
    )


def _proposal(law: FittedLaw, old: Mixture) -> Mixture:
    floor = {name: 0.1 * share for name, share in old.items()}
    return propose(law, prior=old, kl=ProposalConfig().kl, lower=floor, upper=None, current=old).mixture


def _average(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _agreement(
    law: FittedLaw, mixtures: dict[str, Mixture], truth: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Correlation between predicted and true loss over the mixtures trained."""
    shares = np.array([mixture.array(law.domains) for mixture in mixtures.values()])
    predicted = law.predict(shares)
    true = np.array([[truth[name][m] for m in law.metric_names] for name in mixtures])
    single = [float(spearmanr(predicted[:, m], true[:, m]).statistic) for m in range(true.shape[1])]
    objective, average = law.objective(shares), true.mean(axis=1)
    return {
        "spearman": dict(zip(law.metric_names, single, strict=True)),
        "median_spearman": statistics.median(single),
        "average_spearman": float(spearmanr(objective, average).statistic),
        "average_pearson": float(pearsonr(objective, average).statistic),
    }


def _regrets(
    laws: dict[str, FittedLaw], mixtures: dict[str, Mixture], truth: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Loss of the mixture chosen over the best one trained, as a share of that one's loss."""
    average = {name: _average(losses) for name, losses in truth.items()}
    best = min(average.values())
    random = statistics.mean(value for name, value in average.items() if name.startswith("random"))
    found = {name: average[name] / best - 1 for name in ("in force", "uniform", *laws)}
    return found | {"random choice": random / best - 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--mixtures", type=int, default=12)
    parser.add_argument("--prefix", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--probe-steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    from rich.console import Console

    progress = Progress() if arguments.json else PlainProgress(Console())
    with connected(configuration(arguments, 0, "unused")):
        results = [one_seed(arguments, seed, progress) for seed in range(arguments.seeds)]
    if arguments.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"\nseed {result['seed']}: overhead {100 * result['overhead']:.1f} % of the steps served")
        print(f"{'law':34s} {'median set':>10s} {'average':>8s} {'Pearson':>8s} {'regret':>8s}")
        for name, found in result["laws"].items():
            print(
                f"{name:34s} {found['median_spearman']:10.3f} {found['average_spearman']:8.3f} "
                f"{found['average_pearson']:8.3f} {100 * result['regret'][name]:7.2f}%"
            )
        for name in ("in force", "uniform", "random choice"):
            print(f"{name:34s} {'':10s} {'':8s} {'':8s} {100 * result['regret'][name]:7.2f}%")


if __name__ == "__main__":
    main()
