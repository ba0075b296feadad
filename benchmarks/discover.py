"""How well and how fast a pile is sorted into domains: files with a domain each, thrown together.

    python benchmarks/discover.py                          # the demo's six domains
    python benchmarks/discover.py A.jsonl B.jsonl ...      # files of your own
    python benchmarks/discover.py --documents 100000 --characters 3000 --json
    python benchmarks/discover.py --quick                  # one tenth of the documents

Prints normalised mutual information and adjusted Rand index with the true domains, seconds, processor seconds and the
greatest memory of `opmix discover` in a process of its own. With --documents the files' texts are cut into so many
documents of so many characters, in turn from each file and from the beginning again where one ends.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from opmix_ray.config import SourceConfig
from opmix_ray.sources.source import iter_documents

DATA = Path(__file__).parent.parent / "examples" / "data"
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
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = write(place, given.files, given.documents, given.characters, 0.1 if given.quick else 1.0)
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
    result = {
        "documents": len(true),
        "domains": len(files),
        "nmi": normalized_mutual_info_score(true, said),
        "adjusted_rand": adjusted_rand_score(true, said),
        "stability": found["stability"],
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "gigabytes": used.ru_maxrss / 2**20,
        "names": [domain["name"] for domain in found["domains"]],
    }
    if given.json:
        print(json.dumps(result))
        return
    print(
        f"{result['documents']:,} documents of {result['domains']} domains: NMI {result['nmi']:.3f}, "
        f"adjusted Rand index {result['adjusted_rand']:.3f}, {seconds:.0f} s, "
        f"{result['cpu_seconds']:.0f} s of processors, {result['gigabytes']:.2f} GB"
    )
    print(", ".join(result["names"]))


if __name__ == "__main__":
    main()
