"""How well and how fast a pile is sorted into domains: files with a domain each, thrown together.

    python benchmarks/discover.py                          # the demo's six domains
    python benchmarks/discover.py A.jsonl B.jsonl ...      # files of your own
    python benchmarks/discover.py --documents 100000 --characters 3000 --json
    python benchmarks/discover.py --quick                  # one tenth of the documents
    python benchmarks/discover.py --train                  # also trains on given and on discovered domains, two seeds
    python benchmarks/discover.py --train --seeds 12       # with more seeds the mean difference is better known

Prints normalised mutual information and adjusted Rand index with the true domains, seconds, processor seconds and the
greatest memory of `opmix discover` in a process of its own. With --documents the files' texts are cut into so many
documents of so many characters, in turn from each file and from the beginning again where one ends.

With --train every twelfth document of each file is kept out of the pile. A small model is then trained with a decision
on the files as domains, and again on the discovered domains; both are measured on what was kept out, all files alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import opmix_ray
from opmix_ray.compare.summary import estimate
from opmix_ray.config import SourceConfig
from opmix_ray.sources.source import iter_documents

DATA = Path(__file__).parent.parent / "examples" / "data"
KEPT_OUT = 12  # one of so many documents
DEMO = ("code", "speeches", "glossary", "german", "novel", "mathematics")


def texts(file: str) -> Iterator[str]:
    """Texts of a file's documents."""
    for document in iter_documents(SourceConfig(path=file), Path(file).stem):
        yield "\n".join(document.texts())


def cut(file: str, characters: int) -> Iterator[str]:
    """The text of a file in pieces, for ever."""
    whole = "\n\n".join(texts(file))
    for turn in itertools.count():
        start = turn * 37 % characters  # so that later rounds cut elsewhere
        yield from (whole[k : k + characters] for k in range(start, len(whole) - characters, characters))


def write(
    place: Path, files: Sequence[str], documents: int | None, characters: int, share: float
) -> list[str]:
    """The files of the pile, one for each domain."""
    written = []
    for number, file in enumerate(files):
        found = list(texts(file)) if documents is None else None
        if found is not None:
            found = found[: max(20, int(share * len(found)))]
        else:
            found = list(itertools.islice(cut(file, characters), int(share * (documents or 0) / len(files))))
        path = place / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
        written.append(str(path))
    return written


def keep_out(files: Sequence[str]) -> dict[str, Any]:
    """Move documents out of the files of the pile; evaluation sets of them."""
    sets = {}
    for file in files:
        path = Path(file)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        own = path.with_name(f"set-{path.name}")
        own.write_text("".join(lines[::KEPT_OUT]), encoding="utf-8")
        path.write_text("".join(line for k, line in enumerate(lines) if k % KEPT_OUT), encoding="utf-8")
        sets[f"set-{path.stem}"] = {"path": str(own)}
    return sets


def final_loss(domains: Mapping[str, Any], sets: Mapping[str, Any], output: Path, seed: int) -> float:
    """Mean loss of the sets where a run ends that counting decided for at its start, in nats per token."""
    width = 64
    found = opmix_ray.run(
        {
            "name": output.name, "seed": seed, "output": str(output),
            "model": {"autocast": False, "config": {
                "model_type": "llama", "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
                "max_position_embeddings": 256,
            }},
            "tokenizer": {"path": str(DATA / "tokenizer")},
            "data": {"seq_len": 128, "eval_fraction": 0.05, "domains": dict(domains)},
            "train": {
                "batch_size": 16, "optimizer": {"learning_rate": 4e-3},
                "schedule": {"kind": "wsd", "warmup_fraction": 0.05, "decay_fraction": 0.2},
            },
            "stages": [{"name": "all", "steps": 300, "start": "proportional", "decide_at": [0.0]}],
            "search": {"budget": 1e-6},  # pays for no probe: counting alone decides
            "evaluation": {
                "sequences": 96, "batch_size": 4, "sets": dict(sets), "weights": dict.fromkeys(sets, 1.0),
            },
        },
        progress=False,
    )  # fmt: skip
    return float(found["evaluations"][-1]["objective"])


def main() -> None:
    """Print one line, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=[str(DATA / f"{name}.jsonl.gz") for name in DEMO])
    parser.add_argument("--documents", type=int)
    parser.add_argument("--characters", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = write(place, given.files, given.documents, given.characters, 0.1 if given.quick else 1.0)
        sets = keep_out(files) if given.train else {}
        command = [sys.executable, "-m", "opmix_ray", "discover", *files, "--domains", str(len(files)),
                   "--output", str(place / "out"), "--seed", str(given.seed), "--json"]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
        found = json.loads(done.stdout)
        true, said = [], []
        for domain in found["domains"]:
            for shard in (place / "out" / domain["name"]).iterdir():
                rows = [json.loads(line) for line in shard.open(encoding="utf-8")]
                true += [row["file"] for row in rows]
                said += [domain["name"]] * len(rows)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        names = [domain["name"] for domain in found["domains"]]
        if given.train:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)  # for all runs
        losses = [
            [
                final_loss({Path(f).stem: {"path": f} for f in files}, sets, place / f"given-{seed}", seed),
                final_loss(
                    {n: {"path": str(place / "out" / n)} for n in names}, sets, place / f"found-{seed}", seed
                ),
            ]
            for seed in (range(given.seeds) if given.train else ())
        ]
    result = {
        "documents": len(true),
        "domains": len(files),
        "nmi": normalized_mutual_info_score(true, said),
        "adjusted_rand": adjusted_rand_score(true, said),
        "stability": found["stability"],
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "gigabytes": used.ru_maxrss / 2**20,
        "names": names,
        "losses": losses,
    }
    if given.json:
        print(json.dumps(result))
        return
    print(
        f"{result['documents']:,} documents of {result['domains']} domains: NMI {result['nmi']:.3f}, "
        f"adjusted Rand index {result['adjusted_rand']:.3f}, {seconds:.0f} s, "
        f"{result['cpu_seconds']:.0f} s of processors, {result['gigabytes']:.2f} GB"
    )
    print(", ".join(names))
    for seed, (by_files, discovered) in enumerate(losses):
        print(
            f"seed {seed}: loss {by_files:.4f} with the files as domains, {discovered:.4f} with those that were found: "
            f"{100 * (discovered / by_files - 1):+.2f} %"
        )
    if len(losses) > 1:
        found = estimate([100 * (discovered / by_files - 1) for by_files, discovered in losses])
        print(f"mean {found.mean:+.2f} %, 95 % interval {found.low:+.2f} to {found.high:+.2f} %")


if __name__ == "__main__":
    main()
