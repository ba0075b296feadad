"""How fast the data come: our sampler and stores against `datasets.interleave_datasets`, with few and many domains.

    python benchmarks/loader.py [--domains 4 256] [--steps 400] [--repeats 3] [--json] [--quick]

Sequences of random tokens are written as token shards for us and as an Arrow data set for `datasets`, which interleaves
by probabilities and gives batches in numpy. One process, the same batch and sequence length. `need` is what the demo's
model can take: a step of its main loop on one thread. They alternate; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subjects import demo, median, seconds

from opmix_ray.data.sampler import Sampler
from opmix_ray.data.shards import SplitWriter
from opmix_ray.data.store import MANIFEST, MANIFEST_VERSION, TokenStore, gather
from opmix_ray.mixture import Mixture
from opmix_ray.model.loss import compute_context, training_loss

SEQ_LEN, BATCH, VOCAB = 1024, 64, 32000


def write_store(directory: Path, ids: np.ndarray) -> TokenStore:
    """Sequences as a prepared domain."""
    directory.mkdir(parents=True)
    writers = {
        split: SplitWriter(directory, split, seq_len=SEQ_LEN, vocab_size=VOCAB, eos=0)
        for split in ("train", "eval")
    }
    writers["train"].add(ids.reshape(-1), None, 0)
    writers["eval"].add(ids[:1].reshape(-1), None, 0)
    manifest = {
        "version": MANIFEST_VERSION,
        "seq_len": SEQ_LEN,
        "leaks": 0,
        "splits": {split: writer.close() for split, writer in writers.items()},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return TokenStore.open(str(directory), "train")


def ours(stores: dict[str, TokenStore], shares: np.ndarray, steps: int) -> float:
    """Tokens a second of global batches as the main loop draws them."""
    sampler = Sampler(
        {n: len(s) for n, s in stores.items()}, BATCH, 0, Mixture.from_array(list(stores), shares)
    )

    def batch() -> int:
        ids, _ = gather(stores, sampler.next_batch())
        return int(torch.from_numpy(ids)[0, 0])

    batch()
    return steps * BATCH * SEQ_LEN / seconds(lambda: [batch() for _ in range(steps)])


def interleaved(sources: list[Any], shares: np.ndarray, steps: int) -> float:
    """Tokens a second of `interleave_datasets`; making the mixture is not counted."""
    from datasets import interleave_datasets

    mixed = interleave_datasets(
        sources, probabilities=(shares / shares.sum()).tolist(), seed=0, stopping_strategy="all_exhausted"
    ).with_format("numpy")
    count = len(mixed) // BATCH
    began = time.perf_counter()
    for step in range(steps):
        at = step % count * BATCH
        torch.from_numpy(np.asarray(mixed[at : at + BATCH]["input_ids"], dtype=np.int64))
    return steps * BATCH * SEQ_LEN / (time.perf_counter() - began)


def need() -> float:
    """Tokens a second that the demo's model trains on with one thread."""
    torch.set_num_threads(1)
    subject = demo()
    model = subject.model.train()
    ids = torch.from_numpy(
        np.concatenate([held[0] for held in subject.sets(4).values()])[:16].astype(np.int64)
    )
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> None:
        with compute_context(True, "cpu"):
            nats, targets, _ = training_loss(model, ids, mask)
        (nats / targets).backward()
        model.zero_grad()

    step()
    return float(ids.numel() / median([seconds(step) for _ in range(5)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domains", type=int, nargs="+", default=[4, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps, once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.domains, arguments.steps, arguments.repeats = [2, 16], 5, 1
    warnings.filterwarnings("ignore")
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    rng = np.random.default_rng(0)
    speeds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="loader-") as directory:
        for domains in arguments.domains:
            per = max(8, 16384 // domains)  # sequences; about 16 million tokens in all
            stores, sources = {}, []
            for number in range(domains):
                ids = rng.integers(0, VOCAB, (per, SEQ_LEN)).astype(np.uint16)
                stores[f"d{number:03d}"] = write_store(Path(directory) / f"{domains}" / f"{number}", ids)
                source = Dataset.from_dict({"input_ids": list(ids)})
                place = str(Path(directory) / f"hf{domains}" / f"{number}")
                source.save_to_disk(place)
                sources.append(Dataset.load_from_disk(place))
            shares = rng.dirichlet(np.full(domains, 5.0))
            found: dict[str, list[float]] = {"ours": [], "interleave_datasets": []}
            for _ in range(arguments.repeats):
                found["ours"].append(ours(stores, shares, arguments.steps))
                found["interleave_datasets"].append(
                    interleaved(sources, shares, max(2, arguments.steps // 10))
                )
            speeds[str(domains)] = {name: median(values) for name, values in found.items()}
    first, last = (speeds[str(arguments.domains[place])]["ours"] for place in (0, -1))
    result = {
        "tokens_per_second": speeds,
        "need_tokens_per_second": need(),
        "many_over_few_domains": last / first,
        "ours_over_interleave": {k: v["ours"] / v["interleave_datasets"] for k, v in speeds.items()},
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'domains':>8s} {'ours':>14s} {'interleave':>14s}   tokens/s")
    for domains, values in speeds.items():
        print(f"{domains:>8s} {values['ours']:14.0f} {values['interleave_datasets']:14.0f}")
    print(f"the demo's model takes {result['need_tokens_per_second']:.0f} tokens/s on one thread")
    print(
        f"ours with {arguments.domains[-1]} over {arguments.domains[0]} domains: {last / first:.2f}   goal: flat"
    )


if __name__ == "__main__":
    main()
