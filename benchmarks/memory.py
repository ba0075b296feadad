"""Planned memory beside measured memory: each part of a run does its work in a process of its own.

    python benchmarks/memory.py                                   # examples/quickstart.yaml
    python benchmarks/memory.py CONFIG [--set key=value]... [--json]

Measured is the peak of the resident set above what the process has before it loads the model and after it has done the
same work with one layer, with the arrays that a
machine's processes share counted in. Two steps are done, since AdamW has no moments before the first.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PARTS = ("worker", "probe", "evaluator")
ROOT = Path(__file__).resolve().parent.parent


def measure(part: str, file: str, settings: list[str]) -> dict[str, int]:
    """Do one part's work here; bytes of the resident set before it and at its peak."""
    import numpy as np
    import psutil
    import torch
    from transformers import AutoModelForCausalLM

    from opmix_ray.cluster.memory import vocabulary
    from opmix_ray.config import load_config
    from opmix_ray.model.architecture import architecture
    from opmix_ray.model.interpolate import Interpolator, ProbeSet
    from opmix_ray.model.load import DTYPES, load_model
    from opmix_ray.model.loss import compute_context, training_loss
    from opmix_ray.model.peak import set_depth
    from opmix_ray.model.probe import attach, detach, extract
    from opmix_ray.train.loop import _optimizer

    config = load_config(file, settings)
    vocab_size, eos = vocabulary(config)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def steps(model: Any, optimizer: Any, batch: int, micro: int, seq_len: int) -> None:
        for _ in range(2):
            ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (batch, seq_len)))
            mask = torch.ones_like(ids, dtype=torch.bool)
            for start in range(0, batch, micro):
                rows = slice(start, start + micro)
                with compute_context(config.model.autocast, "cpu"):
                    nats, _, _ = training_loss(model, ids[rows], mask[rows])
                (nats / mask.sum()).backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def work(model: Any, seq_len: int) -> None:
        micro = config.train.micro_batch_size
        if part == "worker":
            share = -(-config.train.batch_size // config.train.workers)
            steps(model, _optimizer(model, config.train), share, min(micro or share, share), seq_len)
        elif part == "probe":
            batch = config.probe.batch_size or config.train.batch_size
            model.requires_grad_(False)
            adapted = attach(model, config.probe, seed=0)
            trained = [p for p in adapted.parameters() if p.requires_grad]
            steps(adapted, torch.optim.AdamW(trained), batch, min(micro or batch, batch), seq_len)
        else:
            found = Interpolator(_probe_set(model), autocast=config.model.autocast)
            shape = (config.search.sequences, seq_len)
            ids, mask = rng.integers(0, model.config.vocab_size, shape), np.ones(shape, dtype=bool)
            for _ in range(2):
                found.set(np.full(len(config.data.domains), 0.1))
                found.losses({"one": (ids, mask)}, config.evaluation.batch_size)

    def _probe_set(model: Any) -> ProbeSet:
        probes = []
        for name in config.data.domains:
            adapted = attach(model, config.probe, seed=0)
            probes.append(extract(adapted, name=name, data={name: 1.0}))
            detach(adapted)
        return ProbeSet.build(model, probes, list(config.data.domains))

    # Code is read from disk and kernels are built for each shape when they are first used: that is the process's own.
    shallow = architecture(config.model, vocab_size=vocab_size, eos_token_id=eos).config
    set_depth(shallow, 1)
    work(
        AutoModelForCausalLM.from_config(shallow, dtype=DTYPES[config.model.dtype]).train(),
        config.data.seq_len,
    )
    gc.collect()
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc_trim(0)
    before = psutil.Process().memory_info().rss
    model = load_model(config.model, vocab_size=vocab_size, eos_token_id=eos, seed=0).train()
    gc.collect()
    libc.malloc_trim(0)  # unpacking a GGUF file takes more for a moment
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    work(model, config.data.seq_len)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return {"before": before, "peak": peak}


def compare(file: str, settings: list[str]) -> list[dict[str, Any]]:
    """A row for each part: planned and measured bytes, and their ratio."""
    from opmix_ray.cluster.memory import plan_memory
    from opmix_ray.config import load_config

    plan = plan_memory(load_config(file, settings))
    shared = {"worker": 0, "probe": plan["machine"]["base"], "evaluator": plan["machine"]["base"]}
    shared["evaluator"] += plan["machine"]["factors"] // 2
    rows = []
    for part in PARTS:
        command = [sys.executable, __file__, file, "--measure", part]
        command += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
        planned, measured = plan[part]["peak"] + shared[part], found["peak"] - found["before"]
        rows.append({"part": part, "planned": planned, "measured": measured, "ratio": planned / measured})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default=str(ROOT / "examples" / "quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--measure", choices=PARTS, help="do this part's work here")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.config, given.settings)))
        return
    rows = compare(given.config, given.settings)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['part']:10} planned {row['planned'] / 1e6:9.1f} MB   measured {row['measured'] / 1e6:9.1f} MB"
            f"   ratio {row['ratio']:.2f}"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
