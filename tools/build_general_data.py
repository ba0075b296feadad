"""Write what examples/paper/instruct.yaml needs into examples/paper/data, the same every time.

`general.jsonl.gz`: simple requests and their answers, made up here. From them the model of instruct.base.yaml learns
to repeat, count and pick out, to answer with one of a list of words, and to answer as it was shown a moment before,
whatever the question, which is what self-distillation needs of its teacher. `kinds.jsonl.gz` and `kinds_test.jsonl.gz`:
passages of the texts in examples/data, and the question what kind of text each is from.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from build_questions import CLASSES, LANGUAGES, SCRIPTS, TESTED, TONGUES, write

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TARGET = EXAMPLES / "paper" / "data"
ROWS, GUESSED, SHOWN, EACH = 2400, 1200, 4800, 360
KINDS = {
    "code": "code",
    "speeches": "speech",
    "glossary": "dictionary",
    "novel": "novel",
    "mathematics": "theorem",
}
ANSWERS = sorted({*CLASSES.values(), *LANGUAGES.values(), *TONGUES.values(), *SCRIPTS, *KINDS.values()})
ASKED = [
    "Which language is this? “{}”",
    "What kind of text is this? “{}”",
    "Which of them is “{}”?",
    "Where does “{}” come from?",
    "Which script is {} from?",
    "What kind of word is “{}”?",
    "What goes with {}?",
    "Who wrote “{}”?",
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
Row = dict[str, str]


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


def passages(rng: random.Random, name: str, shortest: int, longest: int) -> list[str]:
    """One passage of each document of examples/data that is long enough, blank space as one space."""
    found = []
    with gzip.open(EXAMPLES / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            text = " ".join(json.loads(line)["text"].split())
            size = rng.randint(shortest, longest)
            if len(text) >= 2 * size:
                start = text.find(" ", rng.randrange(len(text) - size)) + 1
                passage = text[start : start + size].rpartition(" ")[0]
                if len(passage) >= shortest // 2:
                    found.append(passage)
    return found


def guessed(rng: random.Random, texts: list[str]) -> tuple[str, str]:
    """A question that nobody can answer, and one of the answers."""
    return rng.choice(ASKED).format(rng.choice(texts)), rng.choice(ANSWERS)


def shown(rng: random.Random, texts: list[str]) -> tuple[str, str]:
    """The same with the answer shown before."""
    question, answer = guessed(rng, texts)
    return f"{question}\nAnswer: {answer}\n{question}", answer


def general() -> list[Row]:
    """Simple requests."""
    rng, rows = random.Random("general"), dict[str, str]()
    texts = [text for name in (*KINDS, "german") for text in passages(rng, name, 20, 90)]
    for count, make in (
        (ROWS, lambda: row(rng)),
        (GUESSED, lambda: guessed(rng, texts)),
        (SHOWN, lambda: shown(rng, texts)),
    ):
        until = len(rows) + count
        while len(rows) < until:
            prompt, answer = make()
            rows[prompt] = answer
    return [{"prompt": f"{prompt}\nAnswer:", "completion": f" {answer}"} for prompt, answer in rows.items()]


def kinds() -> tuple[list[Row], list[dict[str, object]]]:
    """Training and test rows: of what kind of text a passage is."""
    rng, train, test = random.Random("kinds"), list[Row](), list[dict[str, object]]()
    choices = [f" {kind}" for kind in KINDS.values()]
    for name, kind in KINDS.items():
        found = passages(rng, name, 50, 80) + passages(rng, name, 50, 80)
        for number, text in enumerate(rng.sample(sorted(set(found)), EACH)):
            prompt = f"What kind of text is this? “{text}”\nAnswer:"
            if number % TESTED:
                train.append({"prompt": prompt, "completion": f" {kind}"})
            else:
                test.append({"prompt": prompt, "choices": choices, "answer": f" {kind}"})
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    train, test = kinds()
    for name, rows in (("general", general()), ("kinds", train)):
        write(TARGET / f"{name}.jsonl.gz", rows)
    write(TARGET / "kinds_test.jsonl.gz", test)


if __name__ == "__main__":
    main()
