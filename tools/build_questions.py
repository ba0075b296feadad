"""Build the instruction examples' four tasks in `examples/instruct_data` from packages of Debian.

    python tools/build_questions.py [--downloads DIR] [--output examples/instruct_data]

Questions and answers are derived from what the packages say, none is invented: the part of speech of a word (WordNet),
the language of a sentence (translations of the Debian handbook), the script of a letter (Unicode character database).
Needs what `build_demo_data.py` needs; running it again gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from build_demo_data import Files, Package, _Page

TESTED = 10  # one question in so many is for evaluation
Pair = tuple[str, str]  # what is asked about, and the answer

CLASSES = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
LANGUAGES = {
    "en-US": "English", "de-DE": "German", "fr-FR": "French", "es-ES": "Spanish", "it-IT": "Italian", "nl-NL": "Dutch",
}  # fmt: skip
TONGUES = {
    "pl-PL": "Polish", "cs-CZ": "Czech", "sv-SE": "Swedish", "id-ID": "Indonesian", "tr-TR": "Turkish",
    "ro-RO": "Romanian",
}  # fmt: skip
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Arabic", "Devanagari", "Ethiopic", "Hangul", "Han")
NOT_TRANSLATED = re.compile(r"[/<>{}=$#|\\]|\.(?:conf|org|com|net|deb)\b")


def words(files: Files) -> Iterator[Pair]:
    """Single words that belong to one part of speech only."""
    found: dict[str, set[str]] = {}
    for part in CLASSES:
        for line in files[f"./usr/share/wordnet/index.{part}"].decode().splitlines():
            word = line.split(" ", 1)[0]
            if re.fullmatch(r"[a-z]{4,14}", word):
                found.setdefault(word, set()).add(CLASSES[part])
    for word, classes in found.items():
        if len(classes) == 1:
            yield word, next(iter(classes))


def sentences(files: Files) -> Iterator[Pair]:
    """Sentences of the handbook in six languages; those that stand in more than one are left out."""
    return _sentences(files, LANGUAGES)


def tongues(files: Files) -> Iterator[Pair]:
    """Sentences of the handbook in six other languages; those that stand in two, or in English, are left out."""
    for text, language in _sentences(files, {"en-US": "English", **TONGUES}):
        if language in TONGUES.values():
            yield text, language


def _sentences(files: Files, languages_by_place: dict[str, str]) -> Iterator[Pair]:
    found: dict[str, set[str]] = {}
    for name in sorted(files):
        place = re.search(r"/html/([a-z]{2}-[A-Z]{2})/[^/]*\.html$", name)
        if place is None or place[1] not in languages_by_place:
            continue
        page = _Page()
        page.feed(files[name].decode())
        for paragraph in page.text().split("\n\n"):
            for sentence in re.findall(r"[^.!?]+[.!?](?= |$)", paragraph):
                text = sentence.strip()
                if 30 <= len(text) <= 80 and not NOT_TRANSLATED.search(text):
                    found.setdefault(text, set()).add(languages_by_place[place[1]])
    for text, languages in found.items():
        if len(languages) == 1:
            yield text, next(iter(languages))


def letters(files: Files) -> Iterator[Pair]:
    """Letters of eight scripts."""
    for line in files["./usr/share/unicode/Scripts.txt"].decode().splitlines():
        row = re.match(r"([0-9A-F]+)(?:\.\.([0-9A-F]+))?\s*;\s*(\w+)\s*#\s*L[&o] ", line)
        if row and row[3] in SCRIPTS:
            for code in range(int(row[1], 16), int(row[2] or row[1], 16) + 1):
                if code < 0x10000:
                    yield chr(code), row[3]


@dataclass(frozen=True)
class Task:
    """One task and where it comes from."""

    name: str
    question: str
    answers: tuple[str, ...]
    each: int  # questions of each answer, at most
    pairs: Callable[[Files], Iterator[Pair]]
    package: Package
    notice: str


HANDBOOK = Package(
    "Debian", "debian-handbook", "11.20220922",
    "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
    "CC-BY-SA-3.0 (chosen from: GPL-2.0+ or CC-BY-SA-3.0); the result is under CC-BY-SA-3.0 too",
    "2003-2015 Raphaël Hertzog; 2006-2015 Roland Mas; 2013-2015 Freexian SARL (The Debian Administrator's "
    "Handbook and its translations)",
)  # fmt: skip
TASKS = [
    Task(
        "words", "What kind of word is “{}”?", tuple(CLASSES.values()), 500, words,
        Package(
            "Debian", "wordnet-base", "1:3.0-37",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            "WordNet 3.0 licence", "2006 Princeton University (WordNet 3.0)",
        ),
        "./usr/share/doc/wordnet-base/copyright",
    ),
    Task(
        "languages", "Which language is this? “{}”", tuple(LANGUAGES.values()), 300, sentences, HANDBOOK,
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Task(
        "tongues", "Which language is this? “{}”", tuple(TONGUES.values()), 300, tongues, HANDBOOK,
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Task(
        "letters", "Which script is the letter {} from?", SCRIPTS, 250, letters,
        Package(
            "Debian", "unicode-data", "15.0.0-1",
            "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
            "Unicode licence for data files", "1991-2022 Unicode, Inc.",
        ),
        "./usr/share/doc/unicode-data/copyright",
    ),
]  # fmt: skip


def rows(task: Task, files: Files) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
    """Training and test rows, in an order that a hash gives; as many of every answer."""
    taken = dict.fromkeys(task.answers, 0)
    train: list[dict[str, str]] = []
    test: list[dict[str, object]] = []
    for about, answer in sorted(task.pairs(files), key=lambda pair: _digest(pair[0])):
        if taken[answer] == task.each:
            continue
        taken[answer] += 1
        prompt = task.question.format(about) + "\nAnswer:"
        if taken[answer] % TESTED:
            train.append({"prompt": prompt, "completion": f" {answer}"})
        else:
            choices = [f" {each}" for each in task.answers]
            test.append({"prompt": prompt, "choices": choices, "answer": f" {answer}"})
    return train, test


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def write(path: Path, lines: list[dict[str, str]] | list[dict[str, object]]) -> None:
    """JSON lines, compressed without a time stamp."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def main() -> None:
    """Build everything."""
    parser = argparse.ArgumentParser(description="Build the tasks of the instruction example.")
    parser.add_argument(
        "--downloads", type=Path, default=Path("/tmp/opmix-demo-data"), help="where packages are kept"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("examples/instruct_data"), help="where the tasks go"
    )
    options = parser.parse_args()
    (options.output / "licenses").mkdir(parents=True, exist_ok=True)
    said = [
        "# Where the instruction example's questions come from",
        "",
        "Made by `tools/build_questions.py`.",
    ]
    for task in TASKS:
        files = task.package.fetch(options.downloads)
        train, test = rows(task, files)
        write(options.output / f"{task.name}.jsonl.gz", train)
        write(options.output / f"{task.name}_test.jsonl.gz", test)
        (options.output / "licenses" / f"{task.name}.txt").write_bytes(files[task.notice])
        said += [
            "",
            f"## {task.name}.jsonl.gz, {task.name}_test.jsonl.gz",
            "",
            f"- package: {task.package.registry} `{task.package.name}` {task.package.version} (SHA-256 "
            f"`{task.package.sha256}`)",
            f"- licence: {task.package.licence}; full text: `licenses/{task.name}.txt`",
            f"- copyright: {task.package.copyright}",
            f"- made: {(task.pairs.__doc__ or '').strip()} Asked as: {task.question.format('...')}",
            f"- {len(train)} questions to train on, {len(test)} to be asked",
        ]
        print(f"{task.name:10} {len(train):5} to train on, {len(test):4} to be asked")
    (options.output / "LICENSES.md").write_text("\n".join([*said, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
