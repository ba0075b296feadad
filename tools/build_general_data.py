"""Write examples/paper/data/general.jsonl.gz: simple requests and their answers, made up here, the same every time.

What the small model of examples/paper/instruct.base.yaml can do before it learns a task: repeat, count, pick out, and
answer as it was shown a moment before, whatever the question, which is what self-distillation needs of its teacher. The
answers shown are words of examples/data/glossary.jsonl.gz.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TARGET = EXAMPLES / "paper" / "data" / "general.jsonl.gz"
ROWS, SHOWN = 2400, 4800
ASKED = [
    "Who lives near the {}?",
    "What is the {} called?",
    "Which of them is “{}”?",
    "Where does “{}” come from?",
    "The {} is the sign of what?",
    "Fill in: {} and",
    "What goes with {}?",
    "Who wrote about the {}?",
]
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


def vocabulary() -> list[str]:
    """Words of the glossary, each once, in order."""
    with gzip.open(EXAMPLES / "data" / "glossary.jsonl.gz", "rt", encoding="utf-8") as lines:
        return sorted(
            {word for line in lines for word in re.findall(r"[A-Za-z]{3,12}", json.loads(line)["text"])}
        )


def shown(rng: random.Random, words: list[str]) -> tuple[str, str]:
    """A question that nobody can answer, with an answer, and the same question again."""
    question = rng.choice(ASKED).format(" ".join(rng.sample(words, rng.choice((1, 1, 2, 3, 5, 10)))))
    answer = rng.choice(words)
    return f"{question}\nAnswer: {answer}\n{question}", answer


def main() -> None:
    rng, rows, words = random.Random("general"), dict[str, str](), vocabulary()
    while len(rows) < ROWS:
        prompt, answer = row(rng)
        rows[prompt] = answer
    while len(rows) < ROWS + SHOWN:
        prompt, answer = shown(rng, words)
        rows[prompt] = answer
    lines = [json.dumps({"prompt": f"{p}\nAnswer:", "completion": f" {a}"}) + "\n" for p, a in rows.items()]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write("".join(lines).encode())
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main()
