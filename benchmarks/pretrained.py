"""Does counting say what a pretrained model learns, with and without asking the model what it knows already?

python benchmarks/pretrained.py train [--mixtures 4]   # really trains SmolLM2-135M, five minutes a mixture
python benchmarks/pretrained.py judge                  # counting against what is kept

The texts and the model are those of examples/paper/anneal.yaml. Every domain and both targets are evaluation sets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from opmix_ray.config import RunConfig, load_config
from opmix_ray.config.train import learning_rate
from opmix_ray.counts.ngrams import DataLeft
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.decision.budget import MOST_ASKED
from opmix_ray.decision.task import counts_for, load_weights, texts_for
from opmix_ray.mixture import Mixture
from opmix_ray.model.loss import compute_context, evaluate_sets, target_losses, training_loss
from opmix_ray.train.loop import _optimizer

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "pretrained.json"
STEPS, BATCH, SEQUENCES, RATE = 24, 4, 12, 2e-4


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "judge"])
    parser.add_argument("--mixtures", type=int, default=4)
    arguments = parser.parse_args()
    config = load_config(
        str(ROOT / "examples" / "paper" / "anneal.yaml"),
        [f"train.batch_size={BATCH}", f"train.optimizer.learning_rate={RATE}"],
    )
    torch.set_num_threads(1)
    if arguments.what == "train":
        train(config, prepare(config), arguments.mixtures)
    else:
        judge(config, prepare(config), json.loads(KEPT.read_text()))


def mixtures(domains: list[str], count: int) -> dict[str, Mixture]:
    """The uniform one, and others spread over the simplex."""
    rng = np.random.default_rng(5)
    spread = rng.dirichlet(np.full(len(domains), 0.7), count - 1)
    found = {f"spread {number}": Mixture.from_array(domains, row) for number, row in enumerate(spread)}
    return {"uniform": Mixture.uniform(domains)} | found


def train(config: RunConfig, prepared: Prepared, count: int) -> None:
    """Train mixtures from the same weights; what is kept already is not done again."""
    domains = list(config.data.domains)
    sets = {n: d.evaluation().batch(range(SEQUENCES)) for n, d in prepared.eval_sets.items()}
    stores = {name: prepared.domains[name].train() for name in domains}
    sizes = {name: len(store) for name, store in stores.items()}
    model: Any = load_weights(config, prepared, None)
    base = [weight.detach().clone() for weight in model.parameters()]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"runs": []}
    for name, mixture in mixtures(domains, count).items():
        if any(run["name"] == name for run in kept["runs"]):
            continue
        began = time.monotonic()
        with torch.no_grad():
            for weight, value in zip(model.parameters(), base, strict=True):
                weight.copy_(value)
        model.train()
        optimizer, sampler = _optimizer(model, config.train), Sampler(sizes, BATCH, 0, mixture)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, config.train.optimizer, config.train.schedule)
            ids, mask = gather(stores, sampler.next_batch())
            with compute_context(True, "cpu"):
                loss = training_loss(model, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(mask))[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses = {n: one.mean for n, one in evaluate_sets(model, sets, 8, autocast=True).items()}
        kept["runs"].append({"name": name, "mixture": mixture.shares, "losses": losses})
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def judge(config: RunConfig, prepared: Prepared, kept: dict[str, Any]) -> None:
    """Correlation of counted and trained differences between mixtures, set by set, and the slope of each set."""
    domains, sets = list(config.data.domains), list(prepared.eval_sets)
    shares = np.array([[run["mixture"][name] for name in domains] for run in kept["runs"]])
    trained = np.array([[run["losses"][name] for name in sets] for run in kept["runs"]])
    tokens = np.array([float(prepared.domains[name].train_tokens) for name in domains])
    data = DataLeft(float(STEPS * BATCH * prepared.seq_len), np.zeros(len(domains)), tokens)
    texts = texts_for(prepared, sets, reported=0, searched=0, most=MOST_ASKED)
    model = load_weights(config, prepared, None)
    nats = {n: target_losses(model, *held, 8, autocast=True) for n, held in texts.items()}
    even = Mixture.uniform(domains)
    print(f"{len(shares)} mixtures, {len(sets)} sets; differences from each set's mean over the mixtures")
    for title, told in (("counting alone", None), ("the model asked first", nats)):
        counts = counts_for(prepared, texts, even, data, told)
        counted = np.column_stack([counts[name].loss(shares, data) for name in sets])
        away, seen = trained - trained.mean(axis=0), counted - counted.mean(axis=0)
        slopes = (away * seen).sum(axis=0) / np.square(seen).sum(axis=0)
        print(
            f"{title}: correlation {np.corrcoef(away.ravel(), seen.ravel())[0, 1]:.3f}, nats of the model for a nat "
            f"counted {(away * seen).sum() / np.square(seen).sum():.2f} "
            f"({', '.join(f'{n} {s:.2f}' for n, s in zip(sets, slopes, strict=True))})"
        )


if __name__ == "__main__":
    main()
