"""`python -m tests.fuzz`: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.feeds import FEEDS
from tests.fuzz.trial import limit_memory, tried

MEMORY = 6 << 30  # bytes of address space beside what is there at the start


def main() -> None:
    parser = argparse.ArgumentParser(description="Read damaged files; only clear errors may come.")
    parser.add_argument("--count", type=int, default=5000, help="inputs of all kinds together")
    parser.add_argument("--only", nargs="*", default=list(FEEDS), help="kinds")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    chosen = parser.parse_args()
    limit_memory(MEMORY)
    each, bad = -(-chosen.count // len(chosen.only)), 0
    for name in chosen.only:
        began, counts = time.monotonic(), Counter[str]()
        for number in range(chosen.first, chosen.first + each):
            with tempfile.TemporaryDirectory() as directory:
                outcome = tried(FEEDS[name], random.Random(f"{name}/{number}"), Path(directory))
            counts[outcome.kind] += 1
            if outcome.kind == "unclear":
                bad += 1
                print(f"{name}/{number}: {outcome.said}", flush=True)
        print(f"{name}: {dict(counts)} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{each * len(chosen.only)} inputs, {bad} without a clear error")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
