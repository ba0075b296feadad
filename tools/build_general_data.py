"""Write examples/paper/data/general.jsonl.gz: simple requests and their answers, made up here, the same every time.

What the small model of examples/paper/instruct.base.yaml can do before it learns a task: repeat, count, pick out.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "examples" / "paper" / "data" / "general.jsonl.gz"
ROWS = 2400
WORDS = [
    "river",
    "stone",
    "lamp",
    "cloud",
    "horse",
    "bread",
    "green",
    "silver",
    "winter",
    "garden",
    "letter",
    "window",
    "music",
    "bridge",
    "forest",
    "candle",
    "paper",
    "mountain",
    "summer",
    "orange",
    "bottle",
    "pencil",
    "basket",
    "island",
]


def row(rng: random.Random) -> tuple[str, str]:
    """One request and its answer."""
    words = rng.sample(WORDS, 3)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Repeat: {' '.join(words)}.", " ".join(words)
    if kind == 1:
        count = rng.randint(2, 5)
        return f"Say {words[0]} {count} times, then {words[1]}.", " ".join([words[0]] * count + [words[1]])
    if kind == 2:
        return f"What is the first word of: {' '.join(words)}?", words[0]
    return f"What is the last word of: {' '.join(words)}?", words[-1]


def main() -> None:
    rng, rows = random.Random("general"), dict[str, str]()
    while len(rows) < ROWS:
        prompt, answer = row(rng)
        rows[prompt] = answer
    lines = [json.dumps({"prompt": f"{p}\nAnswer:", "completion": f" {a}"}) + "\n" for p, a in rows.items()]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write("".join(lines).encode())
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main()
