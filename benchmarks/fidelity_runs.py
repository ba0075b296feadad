"""Measurements behind `fidelity.py`: what the probes say about many mixtures, and what real training makes of them.

    python benchmarks/fidelity_runs.py --output runs/fidelity [--data DIR] [--seed 0] [--steps 400] ...

One call is one data set and one seed: a prefix trained under the proportional mixture, probes on it, candidates
scored by interpolation, and mixtures really trained from the prefix. Everything goes into one JSON file, so that laws
can be compared without training again. Ray is not needed; on a GPU a step is a CUDA graph.
`--data DIR` takes every `*.jsonl*` in a directory as a domain (column `text`); else the demo's domains.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from opmix_ray.config import RunConfig, load_config
from opmix_ray.config.train import learning_rate
from opmix_ray.data.held_out import HeldOut, report_sets, search_sets
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.decision.old_part import probe_data
from opmix_ray.decision.task import load_weights
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import train_flops
from opmix_ray.model.base import BaseModel, snapshot
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.model.loss import evaluate_sets
from opmix_ray.model.probe import Probe
from opmix_ray.paths import shipped
from opmix_ray.train.loop import _optimizer
from opmix_ray.train.probes import ProbeTask, train_probe
from opmix_ray.trials.trial import CandidateScorer


def configuration(data: str | None, seed: int, *, steps: int, prefix: int, cache: str | None) -> RunConfig:
    """The demo's model and settings on the domains asked for."""
    config = load_config(
        shipped("examples") / "quickstart.yaml",
        [
            f"seed={seed}",
            "search.sequences=32",
            "evaluation.sequences=160",
            "data.eval_fraction=0.1",
            "train.schedule.kind=constant",
            f"stages.0.steps={prefix + steps}",
        ],
    )
    settings = config.data.model_copy(update={"cache": cache or config.data.cache})
    if data is not None:
        one = next(iter(settings.domains.values()))
        domains = {
            file.name.partition(".")[0]: one.model_copy(
                update={"path": str(file.absolute()), "max_epochs": None}
            )
            for file in sorted(Path(data).glob("*.jsonl*"))
        }
        settings = settings.model_copy(update={"domains": domains})
        tokenizer = config.tokenizer.model_copy(update={"path": None, "train_vocab_size": 4096})
        config = config.model_copy(update={"tokenizer": tokenizer})
    return config.model_copy(update={"data": settings})


class Trainer:
    """The main run's steps in this process: the same batches, loss, optimiser and learning rates."""

    def __init__(self, config: RunConfig, prepared: Prepared, device: torch.device) -> None:
        self.config, self.prepared, self.device = config, prepared, device
        self.model: Any = load_weights(config, prepared, None).to(device)
        self.model.train()
        self.optimizer = _optimizer(self.model, config.train)
        for group in self.optimizer.param_groups:
            group["capturable"] = device.type == "cuda"
            group["lr"] = torch.tensor(group["lr"], device=device)
        shape = (config.train.batch_size, prepared.seq_len)
        self._ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._replay: Callable[[], None] = self._step
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        self._step()  # makes the optimiser's state
        if device.type == "cuda":
            self._replay = self._captured()
        self.restore([*weights, *map(torch.zeros_like, self._tensors()[len(weights) :])])

    def _tensors(self) -> list[torch.Tensor]:
        parameters = list(self.model.parameters())
        state = [value for p in parameters for value in self.optimizer.state[p].values()]
        return [*parameters, *state]

    def _step(self) -> None:
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.config.model.autocast, cache_enabled=False
        ):
            logits = self.model(input_ids=self._ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), self._ids[:, 1:].flatten())
        loss.backward()
        clip = self.config.train.optimizer.clip_norm
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def _captured(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def state(self) -> list[torch.Tensor]:
        """A copy of weights and optimiser."""
        return [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Back to a state, in place."""
        for own, saved in zip(self._tensors(), state, strict=True):
            own.copy_(saved)

    def run(self, sampler: Sampler, start: int, end: int) -> None:
        """Train steps `start` to `end` on the sampler's next batches."""
        stores = {name: self.prepared.domains[name].train() for name in sampler.mixture}
        steps = self.config.stages[0].steps
        batches = [gather(stores, sampler.next_batch()) for _ in range(end - start)]
        assert all(mask.all() for _, mask in batches), "plain text only"
        ids = torch.from_numpy(np.stack([ids for ids, _ in batches])).to(self.device)
        for number, step in enumerate(range(start, end)):
            rate = learning_rate(step, steps, self.config.train.optimizer, self.config.train.schedule)
            for group in self.optimizer.param_groups:
                group["lr"].fill_(rate)
            self._ids.copy_(ids[number])
            self._replay()

    def losses(self, sets: HeldOut) -> dict[str, float]:
        """Nats per token of every set."""
        found = evaluate_sets(self.model, sets, 64, autocast=self.config.model.autocast)
        return {name: loss.mean for name, loss in found.items()}


def sampler_for(trainer: Trainer, mixture: Mixture, state: Any = None, stream: str = "main") -> Sampler:
    """A sampler over the mixture's domains; another `stream` reads them in another order."""
    sizes = {name: len(trainer.prepared.domains[name].train()) for name in mixture}
    config = trainer.config
    return Sampler(sizes, config.train.batch_size, config.seed, mixture, copy.deepcopy(state), stream=stream)


def probe(trainer: Trainer, base: BaseModel, name: str, data: Mixture, steps: int, stream: str) -> Probe:
    """One probe, as the product trains it."""
    config = trainer.config
    task = ProbeTask(
        name=name,
        data=data.shares,
        stream=stream,
        batch_size=config.probe.batch_size or config.train.batch_size,
        micro_batch_size=config.probe.batch_size or config.train.batch_size,
        seed=config.seed,
        probe=config.probe.model_copy(update={"steps": steps, "gpus": float(trainer.device.type == "cuda")}),
        optimizer=config.train.optimizer,
        model=config.model,
        prepared=trainer.prepared,
    )
    return replace(train_probe(task, base), name=name)


def scorer(trainer: Trainer, model: Any, probes: Sequence[Probe], sets: HeldOut) -> CandidateScorer:
    """The product's scorer of candidates."""
    return CandidateScorer(
        ProbeSet.build(model, probes, list(trainer.prepared.domains)),
        sets,
        trainer.config.objective(),
        batch_size=64,
        autocast=trainer.config.model.autocast,
    )


def scored(judge: CandidateScorer, weights: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Loss of every set, and per sequence, at each weight vector."""
    rows = []
    for w in weights:
        score = judge.score(np.asarray(w))
        rows.append(
            {"weights": np.asarray(w).tolist(), "losses": {n: s.mean for n, s in score.losses.items()}}
        )
    return rows


def truth_mixtures(domains: Sequence[str], old: Mixture, count: int, seed: int) -> dict[str, Mixture]:
    """Mixtures to train for real: in force, uniform, one domain starved, one heavy, near the old one, anywhere."""
    size = len(domains)
    mixtures = {"in force": old, "uniform": Mixture.uniform(domains)}
    for number, name in enumerate(domains):
        rest = np.full(size, 1.0)
        rest[number] = 0
        starved = 0.01 * np.eye(size)[number] + 0.99 * rest / rest.sum()
        heavy = 0.6 * np.eye(size)[number] + 0.4 * rest / rest.sum()
        mixtures[f"little {name}"] = Mixture.from_array(domains, starved)
        mixtures[f"much {name}"] = Mixture.from_array(domains, heavy)
    rng = np.random.default_rng([seed, 11])
    while len(mixtures) < count:
        number = len(mixtures)
        near = number % 2 == 1  # the old mixture, or anywhere
        p = rng.dirichlet(4 * size * old.array(domains) + 0.5 if near else np.ones(size))
        mixtures[f"random {number}"] = Mixture.from_array(domains, p)
    return dict(list(mixtures.items())[:count])


def pool(size: int, count: int, seed: int) -> np.ndarray:
    """(count, C) weights over the whole simplex: corners, centre, then Dirichlet of several concentrations."""
    rng = np.random.default_rng([seed, 5])
    rows = [np.full(size, 1 / size), *np.eye(size)]
    while len(rows) < count:
        rows.append(rng.dirichlet(np.full(size, (1.0, 0.5, 3.0)[len(rows) % 3])))
    return np.array(rows[:count])


def uneven(domains: Sequence[str], old: Mixture, count: int, seed: int) -> list[Mixture]:
    """Mixtures for probes that see several domains at once, small shares among them."""
    rng = np.random.default_rng([seed, 17])
    return [Mixture.from_array(domains, rng.dirichlet(np.full(len(domains), 0.7))) for _ in range(count)]


def measure(arguments: argparse.Namespace) -> Path:
    """Everything for one data set and one seed; the file, which is written anew after every part."""
    place = Path(arguments.output)
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{Path(arguments.data).name if arguments.data else 'shipped'}-{arguments.seed}.json"
    began = time.monotonic()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    horizons = sorted(int(h) for h in arguments.horizons.split(","))
    config = configuration(
        arguments.data, arguments.seed, steps=horizons[-1], prefix=arguments.prefix, cache=arguments.cache
    )
    prepared = prepare(config)
    domains = list(prepared.domains)
    old = Mixture.proportional({name: float(d.train_tokens) for name, d in prepared.domains.items()})
    reported = report_sets(prepared, config.evaluation.sequences, config.search.sequences)
    searched = search_sets(prepared, config.evaluation.sequences, config.search.sequences)
    trainer = Trainer(config, prepared, device)
    sampler = sampler_for(trainer, old)
    trainer.run(sampler, 0, arguments.prefix)
    prefix, cursors = trainer.state(), sampler.state
    print(f"prefix: {trainer.losses(reported)} after {time.monotonic() - began:.0f} s", flush=True)
    model = copy.deepcopy(trainer.model).cpu()
    base = snapshot(model)
    result: dict[str, Any] = {
        "data": arguments.data or "shipped",
        "seed": arguments.seed,
        "prefix": arguments.prefix,
        "batch_size": config.train.batch_size,
        "probe_batch_size": config.probe.batch_size,
        "seq_len": prepared.seq_len,
        "sequences": {name: len(ids) for name, (ids, _) in searched.items()},
        "train_flops_per_token": train_flops(model, 1.0, prepared.seq_len),
        "domains": domains,
        "tokens": {name: d.train_tokens for name, d in prepared.domains.items()},
        "old": old.shares,
        "new_share": config.probe.new_share,
        "start": {"reported": trainer.losses(reported), "searched": trainer.losses(searched)},
        "probes": [],
        "truth": [],
    }
    weights = pool(len(domains), arguments.pool, arguments.seed)
    mixed = uneven(domains, old, arguments.uneven, arguments.seed)
    for stream in range(arguments.streams):
        for steps in (int(s) for s in arguments.probe_steps.split(",")):
            single = [
                probe(trainer, base, name, probe_data(name, old, config.probe.new_share), steps, f"s{stream}")
                for name in domains
            ]
            judge = scorer(trainer, model, single, searched)
            block = {
                "stream": stream,
                "steps": steps,
                "flops": sum(p.flops for p in single),
                "data": [p.data for p in single],
                "zero": scored(judge, [np.zeros(len(domains))])[0]["losses"],
                "rows": scored(judge, weights),
                "mixed": [],
            }
            for number, mixture in enumerate([old, Mixture.uniform(domains), *mixed]):
                one = probe(trainer, base, "mixed", mixture, steps, f"m{stream}-{number}")
                row = scored(scorer(trainer, model, [one], searched), [np.ones(1)])[0]
                block["mixed"].append({"mixture": mixture.shares, "losses": row["losses"]})
            result["probes"].append(block)
            print(f"probes of {steps} steps, order {stream}: {time.monotonic() - began:.0f} s", flush=True)
            file.write_text(json.dumps(result))
    mixtures = truth_mixtures(domains, old, arguments.mixtures, arguments.seed)
    if arguments.extra:
        mixtures |= {n: Mixture(p) for n, p in json.loads(Path(arguments.extra).read_text()).items()}
    runs: list[tuple[str, Mixture, Any, str]] = [
        (name, mixture, cursors, "main") for name, mixture in mixtures.items()
    ]
    runs += [(f"in force, order {k}", old, None, f"again-{k}") for k in range(arguments.repeats)]
    for name, mixture, state, stream in runs:
        trainer.restore(prefix)
        reader = sampler_for(trainer, mixture, state, stream)
        at = arguments.prefix
        row: dict[str, Any] = {"name": name, "mixture": mixture.shares, "losses": {}}
        for horizon in horizons:
            trainer.run(reader, at, arguments.prefix + horizon)
            at = arguments.prefix + horizon
            row["losses"][str(horizon)] = trainer.losses(reported)
        result["truth"].append(row)
        last = row["losses"][str(horizons[-1])]
        print(
            f"{name}: {sum(last.values()) / len(last):.4f} after {time.monotonic() - began:.0f} s", flush=True
        )
        result["seconds"] = time.monotonic() - began
        file.write_text(json.dumps(result))
    return file


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="directory of the JSON file")
    parser.add_argument("--data", help="directory of *.jsonl*; none: the demo's domains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", type=int, default=200)
    parser.add_argument("--horizons", default="150,400", help="steps after which real training is measured")
    parser.add_argument("--mixtures", type=int, default=14, help="really trained")
    parser.add_argument(
        "--repeats", type=int, default=0, help="the mixture in force in other orders of the data"
    )
    parser.add_argument("--extra", help="JSON file of further mixtures by name")
    parser.add_argument("--probe-steps", default="25")
    parser.add_argument("--streams", type=int, default=1, help="probes per domain, each with its own data")
    parser.add_argument("--pool", type=int, default=32, help="candidates scored")
    parser.add_argument("--uneven", type=int, default=0, help="probes trained on uneven mixtures")
    parser.add_argument("--device", help="cpu or cuda; none: what there is")
    parser.add_argument("--cache", help="of prepared data")
    arguments = parser.parse_args()
    print(measure(arguments))


if __name__ == "__main__":
    main()
