"""A trained model with probes on as many domains as asked for, cut from the demo's texts by what they are about.

    case = build_case(domains=16, prefix=150, probe_steps=25)
    case.interpolator().losses(case.sets, 16)

Every source is cut along the second singular direction of its documents' hashed word counts, in parts of equal size, so
that domains differ in truth.
All of it runs in this process, without Ray.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer

from opmix_ray.config import RunConfig, load_config
from opmix_ray.data.held_out import HeldOut, search_sets
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.decision.task import load_weights, probe_task
from opmix_ray.mixture import Mixture
from opmix_ray.model.base import BaseModel, snapshot
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.loss import compute_context, training_loss
from opmix_ray.model.probe import Probe
from opmix_ray.paths import shipped
from opmix_ray.train.probes import train_probe


@dataclass
class Case:
    """A decision's ingredients.

    Args:
        config: of the run.
        prepared: its data.
        old: mixture that the model was trained on.
        base: its weights.
        probe_set: its probes, one per domain.
        sets: held-out sequences of every domain.
    """

    config: RunConfig
    prepared: Prepared
    old: Mixture
    base: BaseModel
    probe_set: ProbeSet
    sets: HeldOut

    def interpolator(self) -> Interpolator:
        """A model to move about."""
        return Interpolator(self.probe_set, autocast=self.config.model.autocast)


def cut_texts(directory: Path, domains: int, most_bytes: int, seed: int = 0) -> dict[str, Path]:
    """One JSONL file per domain: sources cut into parts, the longest sources into the most.

    Args:
        directory: for the files.
        domains: how many to make; with fewer than there are sources, the first ones whole.
        most_bytes: of each source.
        seed: of the singular vectors.
    """
    sources: dict[str, list[str]] = {}
    for file in sorted((shipped("examples") / "data").glob("*.jsonl.gz"))[: min(domains, 6)]:
        lines, size = [], 0
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                text = str(json.loads(line)["text"])
                lines += [text[start : start + 1500] for start in range(0, len(text), 1500)]
                size += len(text)
                if size > most_bytes:
                    break
        sources[file.name.partition(".")[0]] = lines
    parts = dict.fromkeys(sources, 1)
    while sum(parts.values()) < domains:
        sizes = {name: sum(map(len, texts)) / parts[name] for name, texts in sources.items()}
        parts[max(sizes, key=lambda name: sizes[name])] += 1
    files = {}
    for name, texts in sources.items():
        words = HashingVectorizer(n_features=1024, alternate_sign=False).transform(texts)
        order = np.argsort(TruncatedSVD(2, random_state=seed).fit_transform(words)[:, 1])
        for number, chosen in enumerate(np.array_split(order, parts[name])):
            file = directory / f"{name}{number}.jsonl"
            file.write_text("".join(json.dumps({"text": texts[i]}) + "\n" for i in chosen))
            files[file.stem] = file
    return files


def build_config(domains: int, directory: Path, *, most_bytes: int, probe_steps: int, seed: int) -> RunConfig:
    """The demo's settings on cut texts."""
    config = load_config(
        shipped("examples") / "quickstart.yaml",
        [
            f"seed={seed}",
            f"probe.steps={probe_steps}",
            "data.eval_fraction=0.15",
            f"data.cache={directory}/cache",
        ],
    )
    one = next(iter(config.data.domains.values()))
    sources = {
        name: one.model_copy(update={"path": str(file), "max_epochs": None})
        for name, file in cut_texts(directory, domains, most_bytes).items()
    }
    return config.model_copy(update={"data": config.data.model_copy(update={"domains": sources})})


def train_prefix(config: RunConfig, prepared: Prepared, mixture: Mixture, steps: int) -> BaseModel:
    """Train fresh weights under a mixture at a constant rate; no checkpoints, no Ray."""
    return train_prefixes(config, prepared, mixture, [steps])[0]


def train_prefixes(
    config: RunConfig, prepared: Prepared, mixture: Mixture, ends: Sequence[int]
) -> list[BaseModel]:
    """The same, with copies of the weights after several numbers of steps, in ascending order."""
    model = load_weights(config, prepared, None).train()
    stores = {name: prepared.domains[name].train() for name in mixture}
    sampler = Sampler({n: len(s) for n, s in stores.items()}, config.train.batch_size, config.seed, mixture)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.train.optimizer.learning_rate, betas=(0.9, 0.95)
    )
    found = []
    for step in range(1, ends[-1] + 1):
        ids, mask = map(torch.from_numpy, gather(stores, sampler.next_batch()))
        with compute_context(config.model.autocast, "cpu"):
            nats, targets, _ = training_loss(model, ids, mask)
        (nats / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step in ends:
            base = snapshot(model.eval())
            copies = {name: array.copy() for name, array in base.weights.items()}
            found.append(replace(base, weights=copies))
            model.train()
    return found


def train_case_probes(
    config: RunConfig, prepared: Prepared, old: Mixture, base: BaseModel, steps: int, stream: str = "case"
) -> list[Probe]:
    """One probe per domain, one after the other."""
    probes = []
    for name in old.domains:
        task = probe_task(config, prepared, name, old, stream)
        task = replace(task, probe=task.probe.model_copy(update={"steps": steps}))
        probes.append(replace(train_probe(task, base), name=name))
    return probes


def build_case(
    domains: int,
    *,
    prefix: int,
    probe_steps: int,
    sequences: int,
    most_bytes: int = 2_000_000,
    seed: int = 0,
) -> Case:
    """Cut, prepare, train the prefix and the probes."""
    with tempfile.TemporaryDirectory(prefix="many-domains-") as directory:
        config = build_config(
            domains, Path(directory), most_bytes=most_bytes, probe_steps=probe_steps, seed=seed
        )
        prepared = prepare(config)
        old = Mixture.uniform(list(prepared.domains))
        base = train_prefix(config, prepared, old, prefix)
        probes = train_case_probes(config, prepared, old, base, probe_steps)
        return Case(
            config,
            prepared,
            old,
            base,
            make_probe_set(base, probes, old.domains),
            search_sets(prepared, 1, sequences),
        )


def make_probe_set(base: BaseModel, probes: Sequence[Probe], domains: Sequence[str]) -> ProbeSet:
    """Base and probes together."""
    from opmix_ray.model.base import model_from

    return ProbeSet.build(model_from(base), probes, domains)
