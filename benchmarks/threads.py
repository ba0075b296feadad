"""What threads cost: a fit, preparing, or a whole run of every kind of process, as it comes and with one thread.

    python benchmarks/threads.py [DATA] [--job fit] [--rows 64] [--busy 2] [--repeats 3] [--json] [--quick]

`--job run` is a run of some minutes: driver, trainer, probes and evaluators, whose times are read while they work. DATA
is RegMix's directory of CSV files; without it a table of the same size is made. `--busy` starts so many processes that
do nothing but compute beside the jobs, which is when waiting threads cost most. Default and one thread take turns;
shown is the median of processor seconds and of seconds. The goal is at most 1.1 times the better one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.1
DEFAULT, ONE = "default", "one thread"
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
FIT = """
import sys
import numpy as np
from opmix_ray.fit.sweep import read_sweep
from opmix_ray.laws import fit_law
from opmix_ray.mixture import Mixture
from opmix_ray.decision.propose import propose
data, rows = sys.argv[1], int(sys.argv[2])
if data:
    sweep = read_sweep(f"{data}/train_mixture_1m.csv", f"{data}/train_pile_loss_1m.csv")
    x, y = sweep.ratios[:rows], sweep.metrics[:rows]
else:
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.full(17, 0.5), rows)
    y = 2 + (x[:, :13] + 0.05) ** -0.3 + 0.01 * rng.standard_normal((rows, 13))
domains = [f"d{i}" for i in range(x.shape[1])]
law = fit_law(x, y, domains=domains, metric_names=[f"m{i}" for i in range(y.shape[1])])
propose(law, prior=Mixture.from_array(domains, np.full(len(domains), 1 / len(domains))), bootstrap=10)
"""
PREPARE = """
import pathlib, tempfile
from opmix_ray.config import load_config
from opmix_ray.data.prepare import prepare
with tempfile.TemporaryDirectory() as directory:
    config = load_config(pathlib.Path("examples/quickstart.yaml"), [f"data.cache={directory}"])
    prepare(config)
"""
RUN = """
import os, pathlib, tempfile, threading, time
import psutil
from opmix_ray.config import load_config
from opmix_ray.runner.runner import run
spent, over = {}, threading.Event()
def look():
    me = psutil.Process()
    while not over.wait(0.5):
        for process in me.children(recursive=True):
            try:
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
            except psutil.Error:
                pass
watch = threading.Thread(target=look)
watch.start()
with tempfile.TemporaryDirectory() as directory:
    settings = [f"data.cache={directory}/cache", "stages.0.steps=150", "search.budget=null", "search.trials=8"]
    config = load_config(pathlib.Path("examples/quickstart.yaml"), settings)
    run(config.model_copy(update={"output": f"{directory}/out"}))
    time.sleep(1)
over.set()
watch.join()
own = os.times()
print(sum(spent.values()) + own.user + own.system)
"""
JOBS = {"fit": FIT, "prepare": PREPARE, "run": RUN}
SPIN = "while True: pass"


def measure(environment: Mapping[str, str], job: str, data: str, rows: int) -> tuple[float, float]:
    """Processor seconds and seconds of one job in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", JOBS[job], data, str(rows)]
    said = subprocess.run(
        command, env=dict(environment), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    if job == "run":  # Ray's processes are not this one's children
        return float(said.split()[-1]), time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return processor, time.perf_counter() - start


def compare(job: str, data: str, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median processor seconds and seconds, as it comes and with one thread."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    settings = {DEFAULT: plain, ONE: plain | dict.fromkeys(VARIABLES, "1")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    for _ in range(repeats):
        for name, environment in settings.items():
            found[name].append(measure(environment, job, data, rows))
    return {
        name: {
            "processor": statistics.median(processor for processor, _ in runs),
            "seconds": statistics.median(seconds for _, seconds in runs),
        }
        for name, runs in found.items()
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="directory of RegMix's CSV files")
    parser.add_argument("--job", choices=list(JOBS), default="fit")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside the fits")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 rows, once")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    rows, repeats = (16, 1) if options.quick else (options.rows, options.repeats)
    beside = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.busy)]
    try:
        found = compare(
            options.job, "" if options.data is None else str(options.data.absolute()), rows, repeats
        )
    finally:
        for process in beside:
            process.kill()
            process.wait()
    better = min(entry["processor"] for entry in found.values())
    ratio = found[DEFAULT]["processor"] / better
    if options.json:
        print(json.dumps({"fits": found, "ratio": ratio, "goal": GOAL, "busy": options.busy}))
        return
    for name, entry in found.items():
        print(f"{name:<12} {entry['processor']:7.2f} processor seconds {entry['seconds']:7.2f} seconds")
    print(f"default over the better one: {ratio:.2f}, goal {GOAL}")


if __name__ == "__main__":
    main()
