"""What a candidate costs: bare forward passes, our trial through Tune, the published procedure. All in one run.

    python benchmarks/trial_cost.py [--models demo smollm2-float32 smollm2-bfloat16] [--trials 40] [--json] [--quick]

- floor: forward passes over the held-out sequences by as many processes as there are evaluators, weights left as they
  are; also by one process with all threads; the faster one counts.
- ours: `searching` from its first line to its last, actors and model built within, over the floor of as many trials.
- published: the candidate merged to a full model, written, loaded and evaluated with `transformers.Trainer`, one
  process with all threads.
- memory: proportional set size (PSS) of one and of two evaluators on the node, and what a bare worker takes.
- disk: bytes that evaluators hand to the block layer (`/proc/PID/io`), and what the search leaves in its directory.
- domains: seconds of a trial with 4 to 64 probes over the same sequences.
Peers alternate and repeat; medians are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from subjects import Subject, demo, median, quiet_ray, seconds, smollm2
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from opmix_ray.data.held_out import HeldOut, tokens_of
from opmix_ray.model.base import factors_only, join_base, snapshot
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import RowLog
from opmix_ray.trials.space import Simplex
from opmix_ray.trials.trial import CandidateScorer, SearchTask
from opmix_ray.trials.tuner import searching

DOMAINS = 6
SIZES = (4, 8, 16, 32, 64)


@dataclass
class Setting:
    """How one model is measured.

    Args:
        sequences: per held-out set.
        trials: of a search.
        published: candidates that the published procedure is timed on.
        repeats: of floor and search, alternating.
    """

    sequences: int
    trials: int
    published: int
    repeats: int
    overrides: list[str] = field(default_factory=list)


class Evaluator:
    """A scorer in a process of its own, without Tune."""

    def __init__(self, task: SearchTask | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self.scorer = None
        if task is not None:
            base, factors, sets = ray.get([task.base, task.factors, task.sets])
            self.scorer = CandidateScorer(
                join_base(factors, base),
                sets,
                task.objective,
                batch_size=task.batch_size,
                autocast=task.autocast,
            )
            self.weights = np.full(len(task.components.names), 1 / len(task.components.names))
            self.score(1)

    def score(self, count: int) -> float:
        """Forward passes over all sequences, `count` times; seconds."""
        assert self.scorer is not None
        part = self.scorer._chunks[0]
        return seconds(lambda: [self.scorer._measure(part) for _ in range(count)])

    def trials(self, count: int) -> float:
        """The same with a change of weights each time."""
        assert self.scorer is not None
        return seconds(lambda: [self.scorer.score(self.weights) for _ in range(count)])

    def pss(self) -> int:
        """Proportional set size of this process, bytes."""
        return pss(os.getpid())


def pss(pid: int) -> int:
    """Proportional set size of a process, bytes; shared memory counts by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class Watch:
    """Bytes that trials' processes hand to the block layer, seen while a `with` lasts."""

    def __init__(self) -> None:
        self.written: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            for process in psutil.process_iter(["cmdline"]):
                if any("Evaluator" in word for word in process.info["cmdline"] or []):
                    try:
                        self.written[process.pid] = process.io_counters().write_bytes
                    except psutil.Error:
                        continue


def floor_seconds(actors: list[Any], count: int) -> float:
    """Wall seconds of `count` rounds over the sequences, shared by the actors."""
    shares = [count // len(actors) + (i < count % len(actors)) for i in range(len(actors))]
    return seconds(lambda: ray.get([a.score.remote(n) for a, n in zip(actors, shares, strict=True) if n]))


def search_seconds(subject: Subject, task: SearchTask, trials: int, evaluators: int) -> dict[str, float]:
    """Wall seconds of a whole search, and what it wrote."""
    config = subject.config.search.model_copy(
        update={"trials": trials, "evaluators": evaluators, "cpus": max(1, cores() // evaluators)}
    )
    uniform = np.full(len(task.components.names), 1 / len(task.components.names))
    with tempfile.TemporaryDirectory(prefix="trial-cost-") as directory, Watch() as watch:
        log = RowLog(Storage(directory), task.components.domains, list(task.objective))
        used = time.process_time()
        first: list[float] = []
        began = time.perf_counter()
        with searching(
            task, Simplex(task.components), config, log, seed=0, start=[uniform],
            on_row=lambda row: first.append(time.perf_counter() - began),
        ) as search:  # fmt: skip
            rows = search.candidates()
            checked = search.check(uniform)
        wall = time.perf_counter() - began
        left = sum(f.stat().st_size for f in Path(directory).rglob("*") if f.is_file())
    return {
        "seconds": wall,
        "first_row_seconds": first[0],
        "scoring_seconds": sum(row.seconds for row in [*rows, checked]),
        "driver_cpu_seconds": time.process_time() - used,
        "evaluators_wrote_bytes": float(sum(watch.written.values())),
        "left_bytes": float(left),
    }


class _Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, sets: HeldOut) -> None:
        self.ids = np.concatenate([held[0] for held in sets.values() if isinstance(held, tuple)])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def published_seconds(
    model: PreTrainedModel, probes: ProbeSet, sets: HeldOut, batch: int, bf16: bool
) -> float:
    """One candidate: merge, write, load, evaluate."""
    weights = np.full(len(probes.components), 1 / len(probes.components))

    def candidate(directory: str) -> None:
        merged = copy.deepcopy(model)
        with torch.no_grad():
            for name, a in probes.A.items():
                left = torch.from_numpy(
                    (probes.B[name] * (weights * probes.scale)[:, None, None]).astype(np.float32)
                )
                delta = torch.einsum("cor,cri->oi", left, torch.from_numpy(a))
                merged.get_submodule(name).weight += delta.to(model.dtype)  # type: ignore[operator]
        merged.save_pretrained(directory)
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=model.dtype)
        settings = TrainingArguments(
            output_dir=f"{directory}/trainer", per_device_eval_batch_size=batch, report_to=[], use_cpu=True,
            disable_tqdm=True, bf16_full_eval=bf16, prediction_loss_only=True,
        )  # fmt: skip
        Trainer(model=loaded, args=settings, eval_dataset=_Sequences(sets)).evaluate()

    # Trainer prints its metrics, which are not this script's output.
    with (
        tempfile.TemporaryDirectory(prefix="published-") as directory,
        contextlib.redirect_stdout(sys.stderr),
    ):
        return seconds(lambda: candidate(directory))


def memory(task: SearchTask, probes: ProbeSet, base_bytes: int) -> dict[str, float]:
    """PSS of evaluators side by side, and of a worker that only imported the same modules."""
    remote = ray.remote(num_cpus=0)(Evaluator)
    bare = remote.remote(None, 1)
    bare_bytes = ray.get(bare.pss.remote())
    ray.kill(bare)
    one = remote.remote(task, 1)
    alone = ray.get(one.pss.remote())
    two = remote.remote(task, 1)
    both = sum(ray.get([one.pss.remote(), two.pss.remote()]))
    for actor in (one, two):
        ray.kill(actor)
    adapted = sum(4 * probes.A[n].shape[2] * probes.B[n].shape[1] for n in probes.A)
    return {
        "base_bytes": base_bytes,
        "adapted_layers_float32_bytes": adapted,
        "bare_worker_pss": bare_bytes,
        "first_evaluator_pss": alone,
        "second_evaluator_adds": both - alone,
        "second_evaluator_adds_over_a_bare_worker": both - alone - bare_bytes,
    }


def by_domains(subject: Subject, sets: HeldOut, repeats: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Median seconds of a trial, in this process, by number of probes; the same sequences throughout."""
    scorers = {}
    for size in sizes:
        probes = subject.probe_set(size)
        uniform = np.full(size, 1 / size)
        scorer = CandidateScorer(
            probes,
            sets,
            equal(sets),
            batch_size=subject.config.evaluation.batch_size,
            autocast=autocast(subject),
        )
        scorer.score(uniform)
        scorers[size] = (scorer, uniform)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, (scorer, uniform) in scorers.items():
            times[size].append(seconds(lambda s=scorer, u=uniform: s.score(u)))  # type: ignore[misc]
    return {str(size): median(found) for size, found in times.items()}


def by_batch(subject: Subject, probes: ProbeSet, sets: HeldOut, repeats: int) -> dict[str, float]:
    """Tokens a second of forward passes by sequences in one, in this process."""
    joined = {"all": tuple(np.concatenate(c) for c in zip(*(h for h in sets.values()), strict=True))}
    tokens = sum(tokens_of(held) for held in sets.values())
    model = Interpolator(probes, autocast=autocast(subject))
    times: dict[int, list[float]] = {size: [] for size in (1, 4, 8, 16, 32, 64)}
    for _ in range(repeats + 1):
        for size, found in times.items():
            found.append(seconds(lambda s=size: model.losses(joined, s)))  # type: ignore[misc,arg-type]
    return {str(size): tokens / median(found[1:]) for size, found in times.items()}


def equal(sets: HeldOut) -> dict[str, float]:
    """The same weight for every set."""
    return {name: 1 / len(sets) for name in sets}


def autocast(subject: Subject) -> bool:
    """Whether forward passes are in bfloat16 over float32 weights."""
    return subject.config.model.autocast


def cores() -> int:
    """Cores of this machine."""
    return len(os.sched_getaffinity(0))


def measure(subject: Subject, setting: Setting, quick: bool) -> dict[str, Any]:
    """Everything about one model."""
    sets = subject.sets(setting.sequences)
    probes = subject.probe_set(DOMAINS)
    base = snapshot(subject.model)
    evaluators = min(2, cores())
    threads = max(1, cores() // evaluators)
    task = SearchTask.put(
        ray.put(base), factors_only(probes), sets, equal(sets),
        batch_size=subject.config.evaluation.batch_size, autocast=autocast(subject),
    )  # fmt: skip
    count = setting.trials + 1  # the proposal is one more
    found: dict[str, Any] = {
        "tokens_per_trial": sum(tokens_of(held) for held in sets.values()),
        "trials": setting.trials, "evaluators": evaluators, "threads_each": threads,
        "memory": memory(task, probes, base.nbytes),
    }  # fmt: skip
    floors: dict[str, list[float]] = {"processes": [], "threads": []}
    searches, published = [], []
    bf16 = subject.config.model.dtype == "bfloat16"
    for _ in range(setting.repeats):
        remote = ray.remote(num_cpus=0)(Evaluator)
        several = [remote.remote(task, threads) for _ in range(evaluators)]
        ray.get([actor.pss.remote() for actor in several])
        floors["processes"].append(floor_seconds(several, count) / count)
        single = remote.remote(task, cores())
        ray.get(single.pss.remote())
        floors["threads"].append(floor_seconds([single], max(2, count // 4)) / max(2, count // 4))
        for actor in (*several, single):
            ray.kill(actor)
        searches.append(search_seconds(subject, task, setting.trials, evaluators))
        torch.set_num_threads(cores())
        published += [
            published_seconds(subject.model, probes, sets, subject.config.evaluation.batch_size, bf16)
            for _ in range(setting.published + 1)
        ][1:]
    floor = min(median(values) for values in floors.values())
    ours = median([run["seconds"] for run in searches]) / count
    found |= {
        "floor_seconds": floor,
        "floor_by": {name: median(values) for name, values in floors.items()},
        "ours_seconds": ours,
        "ours_over_floor": ours / floor,
        "published_seconds": median(published),
        "published_over_ours": median(published) / ours,
        "search": {key: median([run[key] for run in searches]) for key in searches[0]},
    }
    torch.set_num_threads(threads)
    if not quick:
        found["tokens_per_second_by_batch"] = by_batch(subject, probes, sets, 3)
        found["trial_seconds_by_domains"] = by_domains(subject, sets, 5, SIZES)
    else:
        found["trial_seconds_by_domains"] = by_domains(subject, sets, 1, (4, 8))
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """A table of one model."""
    mib = 2.0**20
    print(f"\n{name}: {found['tokens_per_trial']} tokens a trial, {found['trials']} trials,", end=" ")
    print(f"{found['evaluators']} evaluators of {found['threads_each']} threads")
    print(f"  {'floor':34s} {found['floor_seconds']:9.3f} s a trial")
    print(
        f"  {'ours, start-up counted':34s} {found['ours_seconds']:9.3f} s   {found['ours_over_floor']:.3f} x floor"
    )
    print(
        f"  {'published':34s} {found['published_seconds']:9.3f} s   {found['published_over_ours']:.1f} x ours"
    )
    search = found["search"]
    print(f"  first row after {search['first_row_seconds']:.1f} s of {search['seconds']:.1f} s;", end=" ")
    print(f"driver {search['driver_cpu_seconds']:.1f} CPU s;", end=" ")
    print(
        f"evaluators wrote {search['evaluators_wrote_bytes']:.0f} bytes; rows {search['left_bytes']:.0f} bytes"
    )
    used = found["memory"]
    print(f"  a second evaluator adds {used['second_evaluator_adds'] / mib:.0f} MiB,", end=" ")
    print(f"{used['second_evaluator_adds_over_a_bare_worker'] / mib:.0f} more than a bare worker;", end=" ")
    print(
        f"adapted layers {used['adapted_layers_float32_bytes'] / mib:.0f}, base {used['base_bytes'] / mib:.0f}"
    )
    print("  seconds by domains:", {k: round(v, 3) for k, v in found["trial_seconds_by_domains"].items()})
    if "tokens_per_second_by_batch" in found:
        print("  tokens/s by batch:", {k: round(v) for k, v in found["tokens_per_second_by_batch"].items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ("demo", "smollm2-float32", "smollm2-bfloat16")
    parser.add_argument("--models", nargs="+", choices=known, default=list(known))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument(
        "--repeats", type=int, default=3, help="of the demo's floor and search; 1 for the 135M model"
    )
    parser.add_argument("--sequences", type=int, default=4, help="per set, for the 135M model")
    parser.add_argument("--quick", action="store_true", help="a few trials of the demo's model")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {}
    with quiet_ray(cores()):
        for model in ["demo"] if arguments.quick else arguments.models:
            if model == "demo":
                subject = demo()
                setting = Setting(16, arguments.trials, 3, arguments.repeats)
            else:
                subject = smollm2(model.partition("-")[2])
                setting = Setting(arguments.sequences, arguments.trials, 1, 1)
            if arguments.quick:
                setting = Setting(2, 6, 1, 1)
            results[model] = measure(subject, setting, arguments.quick)
            if not arguments.json:
                show(model, results[model])
                sys.stdout.flush()
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
