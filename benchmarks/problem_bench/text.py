"""Texts of the problems: from the shared folder, the shipped domains, and packages that are installed anyway."""

from __future__ import annotations

import gzip
import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PIECE = 1500  # characters of a document cut from a file


def texts(source: str) -> list[str]:
    """Documents of one source.

    Args:
        source: `shared/NAME`, `shipped/NAME`, `paper/NAME` of examples/paper, or `installed/GLOB` below site-packages
            or the standard library.
    """
    kind, _, name = source.partition("/")
    if kind == "shared":
        return list(_documents(ROOT.parent / "shared" / "data" / "text" / f"{name}.jsonl.gz"))
    if kind in ("shipped", "paper"):
        place = ROOT / "examples" / ("paper/data" if kind == "paper" else "data")
        return list(_documents(place / f"{name}.jsonl.gz"))
    paths = sysconfig.get_paths()
    found: list[str] = []
    for root in dict.fromkeys((paths["purelib"], paths["stdlib"])):
        for file in sorted(each for each in Path(root).glob(name) if each.is_file()):
            text = file.read_text(encoding="utf-8", errors="ignore")
            found += [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        if found:
            break
    if not found:
        raise SystemExit(f"no text: {source}")
    return found


def _documents(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def hashes(source: str) -> list[str]:
    """What nobody can learn: check sums of the installed packages' files."""
    found = [line.split(",")[1].partition("=")[2] for text in texts(source) for line in text.splitlines()
             if line.count(",") == 2]  # fmt: skip
    return [" ".join(found[i : i + 30]) for i in range(0, len(found), 30)]


def write(entry: str | Mapping[str, Any], path: Path) -> None:
    """One domain's or target's documents as JSONL.

    Args:
        entry: a source, or `{text: SOURCE, cut: CHARACTERS, part: [k, n], bytes: N, kind: hashes | answers}`.
        path: of the file, which is left alone where it exists.
    """
    if path.exists():
        return
    given = {"text": entry} if isinstance(entry, str) else dict(entry)
    kind = given.get("kind")
    documents = hashes(given["text"]) if kind == "hashes" else texts(given["text"])
    if "cut" in given:
        size = given["cut"]
        documents = [text[i : i + size] for text in documents for i in range(0, len(text), size)]
    if "part" in given:
        number, count = given["part"]
        documents = documents[number::count]
    limit, lines = given.get("bytes", 1_500_000), []
    for document in documents:
        row = {"text": document}
        if kind == "answers":
            question, _, answer = document.partition(given.get("between", "\n"))
            if not answer:
                continue
            row = {"prompt": question + "\n", "completion": answer}
        lines.append(json.dumps(row))
        limit -= len(document.encode())
        if limit <= 0:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
