"""`opmix prepare` against a plain loop over the same tokenizer, on one core and on two, in one run.

    python benchmarks/prepare.py [--megabytes 24] [--repeats 3] [--json] [--quick] [--copies]

The demo's texts, repeated to the size asked for, as JSONL files. The plain loop reads lines, encodes 1,000 at a time
with `tokenizers` and keeps the ids; ours also hashes, holds out, packs and writes shards. Both use as many threads of
`tokenizers` as there are cores in the row. Every measurement is a process of its own, bound to its cores; they
alternate, medians are reported. What two cores are worth here is measured too: two plain loops at once, each bound to
a core of its own, against one alone.

With `--copies` another question: what finding leaks and near-duplicates takes of preparing. The same texts and a set of
1,000 documents for evaluation alone, on one core: as it is, and with documents known by their bytes and not compared.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from subjects import median

from opmix_ray.paths import shipped

BATCH = 1000
APART = "apart"  # folder of the set for evaluation alone


def write_texts(directory: Path, megabytes: float, files: int) -> int:
    """JSONL files of about the same size; their bytes of text."""
    texts: list[str] = []
    for file in sorted((shipped("examples") / "data").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            texts += [str(json.loads(line)["text"]) for line in stream]
    total = number = 0
    streams = [open(directory / f"part-{i}.jsonl", "w", encoding="utf-8") for i in range(files)]  # noqa: SIM115
    while total < megabytes * 1e6:
        text = f"{number}\n{texts[number % len(texts)]}"  # no two documents are the same
        streams[number % files].write(json.dumps({"text": text}) + "\n")
        total += len(text.encode())
        number += 1
    for stream in streams:
        stream.close()
    return total


def ours(directory: Path) -> float:
    """Seconds of `prepare` with an empty cache, imports left out."""
    return prepared(directory)


def looking(directory: Path) -> float:
    """The same beside a set for evaluation alone."""
    return prepared(directory, apart={"path": str(directory / APART / "set.jsonl")})


def prepared(directory: Path, **sets: dict[str, str]) -> float:
    """Seconds of `prepare` on the folder's files as one domain, and sets for evaluation alone."""
    from opmix_ray.config import EvaluationSetConfig, load_config
    from opmix_ray.data.prepare import prepare

    with tempfile.TemporaryDirectory(prefix="prepare-cache-") as cache:
        config = load_config(shipped("examples") / "quickstart.yaml", [f"data.cache={cache}"])
        one = next(iter(config.data.domains.values()))
        domain = one.but(path=str(directory / "*.jsonl"), max_epochs=None)
        own = {name: EvaluationSetConfig(**given) for name, given in sets.items()}
        config = config.but(data=config.data.but(domains={"all": domain}))
        config = config.but(evaluation={"sets": own or config.evaluation.sets})
        began = time.perf_counter()
        prepare(config)
        return time.perf_counter() - began


def blind(directory: Path) -> float:
    """The same without words, shingles, signatures and a look at the set."""
    import hashlib

    import numpy as np

    from opmix_ray.overlap import leaks, near
    from opmix_ray.sources.source import Document

    def by_bytes(document: Document, words: str | None = None) -> int:
        found = hashlib.blake2b(str(document.text).encode(), digest_size=8).digest()
        return int.from_bytes(found, "little")

    none = np.zeros(0, np.uint64)
    patched: list[tuple[Any, str, Any]] = [
        (Document, "words", lambda document: document.text),
        (Document, "digest", by_bytes),
        (leaks.Prints, "of", lambda words: leaks.Prints(none, none.astype(np.int64), len(words))),
        (leaks.Table, "find", lambda table, prints, digests: np.full(len(digests), -1)),
        (near, "groups", lambda signatures: np.arange(len(signatures))),
    ]
    for holder, name, put in patched:
        setattr(holder, name, put)
    return looking(directory)


def plain(directory: Path) -> float:
    """Seconds of a loop that a user would write."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shipped("examples") / "data" / "tokenizer" / "tokenizer.json"))
    began = time.perf_counter()
    ids: list[list[int]] = []
    for file in sorted(directory.glob("*.jsonl")):
        batch: list[str] = []
        with open(file, encoding="utf-8") as stream:
            for line in stream:
                batch.append(json.loads(line)["text"])
                if len(batch) == BATCH:
                    ids += [found.ids for found in tokenizer.encode_batch(batch)]
                    batch = []
        ids += [found.ids for found in tokenizer.encode_batch(batch)]
    assert ids
    return time.perf_counter() - began


def write_set(directory: Path, documents: int = 1000) -> None:
    """A set of documents of their own: the words of training documents, in another order."""
    (directory / APART).mkdir()
    rows: list[str] = []
    for file in sorted(directory.glob("*.jsonl")):
        with open(file, encoding="utf-8") as stream:
            texts = [json.loads(line)["text"] for line, _ in zip(stream, range(documents), strict=False)]
        rows += [json.dumps({"text": " ".join(sorted(text.split()))}) + "\n" for text in texts]
    (directory / APART / "set.jsonl").write_text("".join(rows[:documents]), encoding="utf-8")


def share_of_copies(directory: Path, repeats: int) -> dict[str, float]:
    """Seconds with and without, and the share of the first that the difference is."""
    write_set(directory)
    found: dict[str, list[float]] = {"looking": [], "blind": []}
    for _ in range(repeats):
        for how, values in found.items():
            values.append(apart(how, directory, 1))
    with_it, without = median(found["looking"]), median(found["blind"])
    return {"looking": with_it, "blind": without, "share": 1 - without / with_it}


def start(how: str, directory: Path, cores: list[int]) -> subprocess.Popen[str]:
    """One measurement in a process of its own, bound to some cores."""
    return subprocess.Popen(
        [sys.executable, __file__, "--one", how, str(directory)],
        env=os.environ | {"RAYON_NUM_THREADS": str(len(cores)), "TOKENIZERS_PARALLELISM": "true"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> float:
    """Its seconds."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement failed with exit code {process.returncode}")
    return float(out.strip().splitlines()[-1])


def apart(how: str, directory: Path, cores: int) -> float:
    """One measurement alone on so many cores."""
    return end(start(how, directory, sorted(os.sched_getaffinity(0))[:cores]))


def worth_of_two(directory: Path, repeats: int) -> float:
    """Work that two cores do in the time that one needs for one piece of it."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    alone, together = [], []
    for _ in range(repeats):
        alone.append(end(start("plain", directory, [first])))
        both = [start("plain", directory, [core]) for core in (first, second)]
        together.append(max(map(end, both)))
    return 2 * median(alone) / median(together)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a megabyte, once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--copies", action="store_true", help="what finding copies takes of preparing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        how, directory = arguments.one
        print({"ours": ours, "plain": plain, "looking": looking, "blind": blind}[how](Path(directory)))
        return
    if arguments.quick:
        arguments.megabytes, arguments.repeats = 1, 1
    counts = [count for count in (1, 2) if count <= len(os.sched_getaffinity(0))]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="prepare-") as directory:
        size = write_texts(Path(directory), arguments.megabytes, arguments.files)
        if arguments.copies:
            shares = share_of_copies(Path(directory), arguments.repeats)
            print(
                json.dumps(shares)
                if arguments.json
                else f"preparing {shares['looking']:.1f} s, without finding copies {shares['blind']:.1f} s: "
                f"{shares['share']:.0%} of it   goal at most 50%"
            )
            return
        times: dict[tuple[str, int], list[float]] = {
            (how, c): [] for how in ("ours", "plain") for c in counts
        }
        for _ in range(arguments.repeats):
            for (how, cores), values in times.items():
                values.append(apart(how, Path(directory), cores))
        worth = worth_of_two(Path(directory), arguments.repeats) if len(counts) == 2 else 1.0
    for cores in counts:
        mine, theirs = (size / 1e6 / median(times[how, cores]) for how in ("ours", "plain"))
        found[str(cores)] = {
            "ours_mb_per_second": mine,
            "plain_mb_per_second": theirs,
            "ours_over_plain": mine / theirs,
        }
    if len(counts) == 2:
        found["two_cores_over_one"] = found["2"]["ours_mb_per_second"] / found["1"]["ours_mb_per_second"]
        found["two_cores_are_worth"] = worth
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{'cores':>5s} {'ours':>8s} {'plain':>8s} MB/s {'ratio':>7s}   goal 0.9 on one core")
    for cores in counts:
        row = found[str(cores)]
        print(
            f"{cores:5d} {row['ours_mb_per_second']:8.1f} {row['plain_mb_per_second']:8.1f}      "
            f"{row['ours_over_plain']:7.2f}"
        )
    if len(counts) == 2:
        print(
            f"ours on two cores over one: {found['two_cores_over_one']:.2f}; two plain loops at once: {worth:.2f}"
        )


if __name__ == "__main__":
    main()
