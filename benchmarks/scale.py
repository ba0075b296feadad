"""What a decision costs as it grows: each number from a formula, beside the same number counted or timed here.

    python benchmarks/scale.py            # a table; a few minutes on one core
    python benchmarks/scale.py --json

docs/scale.md draws the large numbers on from these formulas.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VALUE, COUNT = 8, 4  # bytes of a loss and of a number of tokens in a row
NAMED = 97  # bytes of one entry of a row's dictionary: slot, float, or the head of an array
KEPT_BY_TUNE = 3000  # bytes that Tune keeps of a set, beside the values of its sequences
TRIAL = 6500  # bytes that Tune keeps of a trial without any set
LISTED = 32  # bytes of a number in a list: pointer and float


def row_bytes(domains: int, sets: int, sequences: int) -> int:
    """Driver memory of one trial's row: values of every sequence, and five entries by name."""
    return sets * sequences * (VALUE + COUNT) + NAMED * (2 * domains + 3 * sets)


def line_bytes(domains: int, sets: int, sequences: int) -> int:
    """The same on disk: 19 characters of a loss, 5 of a number of tokens, 38 of an entry by name."""
    return sets * sequences * (19 + 5) + 38 * (2 * domains + 3 * sets)


def synthetic_row(run: int, domains: int, sets: int, sequences: int, rng: np.random.Generator) -> Any:
    """A row as a trial gives it."""
    from opmix_ray.trials.rows import TrialRow

    names, tests = [f"domain_{i:04d}" for i in range(domains)], [f"domain_{i:04d}" for i in range(sets)]
    shares = rng.dirichlet(np.ones(domains)).tolist()
    return TrialRow(
        run=f"{run:03d}",
        weights=dict(zip(names, shares, strict=True)),
        ratios=dict(zip(names, rng.dirichlet(np.ones(domains)).tolist(), strict=True)),
        losses=dict(zip(tests, rng.normal(3, 0.1, sets).tolist(), strict=True)),
        objective=float(rng.normal(3, 0.1)),
        nats={name: rng.normal(3000, 100, sequences).tolist() for name in tests},
        targets={name: [1023] * sequences for name in tests},
    )


def rows(count: int = 24, domains: int = 256, sets: int = 256, sequences: int = 32) -> list[dict[str, Any]]:
    """Memory and disk of rows."""
    from opmix_ray.storage import Storage
    from opmix_ray.trials.rows import TRIALS, RowLog

    rng = np.random.default_rng(0)
    names = [f"domain_{i:04d}" for i in range(domains)]
    with tempfile.TemporaryDirectory() as directory:
        log = RowLog(Storage(directory), names, names[:sets])
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        began = time.perf_counter()
        for run in range(count):
            log.add(synthetic_row(run, domains, sets, sequences, rng))
        seconds = (time.perf_counter() - began) / count
        kept = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        line = (Path(directory) / TRIALS).stat().st_size / count
    what = f"{domains} domains, {sets} sets of {sequences} sequences"
    return [
        entry(f"driver memory of a row, {what}", row_bytes(domains, sets, sequences), kept, "bytes"),
        entry(f"disk of a row, {what}", line_bytes(domains, sets, sequences), line, "bytes"),
        entry("writing a row", None, seconds, "s"),
    ]


def tune_keeps(sets: int = 64, sequences: int = 32) -> list[dict[str, Any]]:
    """Memory that Tune holds of a finished trial: its last result, and statistics of every metric."""
    from ray.tune.experiment import Trial

    rng = np.random.default_rng(0)
    names = [f"domain_{i:04d}" for i in range(sets)]

    def result() -> dict[str, Any]:
        return {
            "training_iteration": 1,
            "objective": float(rng.normal()),
            **{f"eval_{name}_loss": float(rng.normal()) for name in names},
            "weights": rng.random(sets).tolist(),
            "ratios": rng.random(sets).tolist(),
            **{f"nats/{name}": rng.random(sequences).tolist() for name in names},
            **{f"targets/{name}": [1023 + int(k) for k in range(sequences)] for name in names},
        }

    trials = [Trial("none", stub=True) for _ in range(8)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for trial in trials:
        trial.update_last_result(result())
    kept = (tracemalloc.get_traced_memory()[0] - before) / len(trials)
    tracemalloc.stop()
    planned = 2 * LISTED * sets * sequences + KEPT_BY_TUNE * sets + TRIAL
    return [entry(f"Tune's memory of a trial, {sets} sets of {sequences}", planned, kept, "bytes")]


def objects() -> list[dict[str, Any]]:
    """Bytes in the object store: base and factors, as they are serialised with their buffers apart."""
    from opmix_ray.cluster.memory import plan_memory, vocabulary
    from opmix_ray.config import load_config
    from opmix_ray.model.base import factors_only, snapshot
    from opmix_ray.model.interpolate import ProbeSet
    from opmix_ray.model.load import load_model
    from opmix_ray.model.probe import attach, detach, extract

    config = load_config(ROOT / "examples" / "quickstart.yaml")
    planned = plan_memory(config)["machine"]
    vocab_size, eos = vocabulary(config)
    model = load_model(config.model, vocab_size=vocab_size, eos_token_id=eos, seed=0)
    probes = []
    for name in config.data.domains:
        adapted = attach(model, config.probe, seed=0)
        probes.append(extract(adapted, name=name, data={name: 1.0}))
        detach(adapted)
    found = [
        entry("base in the object store (demo)", planned["base"], stored(snapshot(model)), "bytes"),
        entry(
            "factors in the object store (demo)",
            planned["factors"] // 2,
            stored(factors_only(ProbeSet.build(model, probes, list(config.data.domains)))),
            "bytes",
        ),
    ]
    return found + trials(config, model, probes, vocab_size)


def stored(value: Any) -> int:
    """Bytes of an object as Ray stores it: pickled, with arrays out of band."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)


def trials(config: Any, model: Any, probes: list[Any], vocab_size: int) -> list[dict[str, Any]]:
    """Seconds of a trial in proportion to its tokens: a rate from few sequences foretells many."""
    import torch

    from opmix_ray.model.architecture import forward_flops
    from opmix_ray.model.interpolate import ProbeSet
    from opmix_ray.trials.trial import CandidateScorer

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    probe_set = ProbeSet.build(model, probes, list(config.data.domains))
    per_token = forward_flops(model, 1.0, config.data.seq_len)

    def seconds(sequences: int) -> float:
        ids = rng.integers(0, vocab_size, (sequences, config.data.seq_len))
        sets = {"one": (ids, np.ones(ids.shape, dtype=bool))}
        scorer = CandidateScorer(probe_set, sets, {"one": 1.0}, batch_size=16)
        scorer.score(np.full(len(probes), 0.1))
        times = []
        for _ in range(3):
            began = time.process_time()
            scorer.score(np.full(len(probes), 0.1))
            times.append(time.process_time() - began)
        return float(np.median(times))

    rate = 32 * config.data.seq_len * per_token / seconds(32)
    planned = 128 * config.data.seq_len * per_token / rate
    return [
        entry("forward passes of a trial (demo, one core)", None, rate / 1e9, "GFLOP/s"),
        entry("a trial of 128 sequences, from the rate of 32", planned, seconds(128), "s"),
    ]


def loader(domains: int = 256, tokens: float = 1e13, seq_len: int = 4096) -> list[dict[str, Any]]:
    """The reading position of a run over ten trillion tokens, and a batch of it."""
    from opmix_ray.data.sampler import Sampler
    from opmix_ray.mixture import Mixture

    total, batch = int(tokens) // seq_len, 1024
    names = [f"domain_{i:04d}" for i in range(domains)]
    sampler = Sampler(dict.fromkeys(names, total // domains), batch, 0, Mixture.uniform(names))
    state = sampler.state
    state.step = total // batch
    state.consumed = dict.fromkeys(names, state.step * batch // domains)
    resumed = Sampler(dict.fromkeys(names, total // domains), batch, 0, Mixture.uniform(names), state)
    began = time.perf_counter()
    drawn = resumed.next_batch()
    seconds = time.perf_counter() - began
    assert drawn.indices.max() < total // domains
    size = len(json.dumps(resumed.state.to_dict()))
    planned = 200 + 104 * domains  # a name four times, with cursor, carry and share
    return [
        entry(f"loader state after 1e13 tokens, {domains} domains", planned, size, "bytes"),
        entry(f"a batch of {batch} sequences there", None, seconds, "s"),
    ]


def store_index(batches: int = 2000, seq_len: int = 16) -> list[dict[str, Any]]:
    """Memory of an open store for each record batch, which holds about a million tokens."""
    from opmix_ray.data import shards
    from opmix_ray.data.store import MANIFEST, MANIFEST_VERSION, TokenStore

    before_tokens = shards.BATCH_TOKENS
    shards.BATCH_TOKENS = seq_len
    try:
        with tempfile.TemporaryDirectory() as directory:
            parts = {}
            for split, count in (("train", batches), ("eval", 1)):
                writer = shards.SplitWriter(Path(directory), split, seq_len=seq_len, vocab_size=300, eos=0)
                for _ in range(count):
                    writer.add(np.ones(seq_len, dtype=np.int64), None, seq_len)
                parts[split] = writer.close()
            manifest = {"version": MANIFEST_VERSION, "seq_len": seq_len, "leaks": 0, "splits": parts}
            (Path(directory) / MANIFEST).write_text(json.dumps(manifest))
            tracemalloc.start()
            store = TokenStore.open(directory, "train")
            kept = tracemalloc.get_traced_memory()[0] / len(store)
            tracemalloc.stop()
    finally:
        shards.BATCH_TOKENS = before_tokens
    return [entry("memory of an open store for a record batch", INDEXED, kept, "bytes")]


FITS = (
    ("log-linear", 16, 128), ("log-linear", 32, 128), ("log-linear", 64, 128), ("log-linear", 64, 256),
    ("log-share", 16, 128), ("log-share", 16, 256), ("log-share", 32, 128), ("auto", 16, 128),
)  # fmt: skip
INDEXED = 470  # bytes of a view on a record batch


def fits() -> list[dict[str, Any]]:
    """Processor seconds of fitting one set's law, as rows and domains grow."""
    from opmix_ray.laws import fit_law

    rng = np.random.default_rng(0)
    found = []
    for law, domains, count in FITS:
        p = rng.dirichlet(np.ones(domains), size=count)
        y = 3 + (p @ rng.random((domains, 1))) + rng.normal(0, 0.01, (count, 1))
        names = [f"domain_{i:04d}" for i in range(domains)]
        began = time.process_time()
        fit_law(p, y, law=law, domains=names, metric_names=["loss"])
        seconds = time.process_time() - began
        found.append(entry(f"fit of {law}, {count} rows, {domains} domains, one set", None, seconds, "s"))
    return found


def entry(what: str, formula: float | None, measured: float, unit: str) -> dict[str, Any]:
    """One line of the result."""
    return {"what": what, "formula": formula, "measured": measured, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts: list[Callable[[], list[dict[str, Any]]]] = [
        rows, partial(rows, domains=64, sets=128, sequences=8), tune_keeps, partial(tune_keeps, sets=16, sequences=64),
        loader, partial(loader, domains=6), store_index, objects, fits,
    ]  # fmt: skip
    found = []
    for part in parts:
        for line in part():
            found.append(line)
            if not given.json:
                formula = "" if line["formula"] is None else f"{line['formula']:14,.6g}"
                measured = f"{line['measured']:14,.6g}"
                print(f"{line['what']:66} {formula:>14} {measured} {line['unit']}", flush=True)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
