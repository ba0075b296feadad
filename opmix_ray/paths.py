"""Files that ship with the package; what a path says by itself: a URI or not, its format, the documents that holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

_HERE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """A directory that ships: inside the installed package, else beside it in a checkout."""
    installed = _HERE / "_shipped" / name
    return installed if installed.exists() else _HERE.parent / name


Kind = Literal["text", "prompt", "messages", "tokens"]  # what a document is

BIN, IDX = ".bin", ".idx"  # of Megatron's indexed data sets
ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".npy": "tokens",
    ".bin": "tokens",
}
PLAIN = {  # of files that a folder may also hold beside its data: notes, settings, programs
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".tex", ".org"), "text"),
    **dict.fromkeys(
        (".py", ".js", ".ts", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs"), "text"
    ),
    **dict.fromkeys(
        (".rb", ".php", ".sh", ".sql", ".r", ".jl", ".lua", ".scala", ".kt", ".swift", ".pl"), "text"
    ),
    **dict.fromkeys((".html", ".htm", ".xml", ".css", ".srt", ".log"), "text"),
}
PACKED = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
}  # after one of lines or text
ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation|authors|contributing|requirements)\b.*"
                   r"|(dataset_infos?|dataset_dict|state|config|metadata|package(-lock)?)\.json", re.I)  # fmt: skip


def existing(path: Path) -> Path:
    """A path, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def is_uri(path: str) -> bool:
    """Whether a path names a file system other than the local one (`s3://`, `gs://`, ...)."""
    return "://" in path


def packing(path: str) -> str:
    """The ending that says how a file is compressed: `.gz`, `.zst`, ...; empty where none does."""
    name = (path.partition("?")[0] if is_uri(path) else path).lower()
    return next((ending for ending in PACKED if name.endswith(ending)), "")


def ending_of(path: str) -> str:
    """The end of a file's name that says its format and how it is compressed: `.jsonl.gz`; empty where it says none."""
    name = (path.partition("?")[0] if is_uri(path) else path).lower()
    packed = packing(name)
    bare = name[: len(name) - len(packed)]
    found = next((each for each in (*ENDINGS, *PLAIN) if bare.endswith(each)), "")
    return (
        ""
        if packed and ENDINGS.get(found) in ("parquet", "arrow", "tokens")
        else found + packed
        if found
        else ""
    )


def file_format(path: str) -> str | None:
    """Format by file ending, or None where it says nothing; compressed `.json` is read as lines, which it mostly is."""
    ending = ending_of(path)
    kind = (ENDINGS | PLAIN).get(ending[: len(ending) - len(packing(ending))])
    return "jsonl" if kind == "json" and packing(ending) else kind


def is_plain(path: str) -> bool:
    """Whether a file has a format that notes and settings beside data have too."""
    return file_format(path) in ("json", "csv", "text")


def of_data(paths: Sequence[str]) -> list[str]:
    """Those of a folder's files that are its data.

    Formats made for data come before plain ones. Where there are plain files only, those about the data (`README`,
    `LICENSE`, `dataset_info.json`, ...) are left out, and of text, CSV and JSON the one that most files have is read.
    """
    known = [path for path in paths if file_format(path)]
    if data := [path for path in known if not is_plain(path)]:
        return data
    kinds = [(path, file_format(path)) for path in known if not is_about(path)]
    count = Counter(kind for _, kind in kinds)
    most = max(("text", "csv", "json"), key=lambda kind: count[kind])
    return [path for path, kind in kinds if kind == most]


def is_about(path: str) -> bool:
    """Whether a file's name says that it is about data: `README.md`, `LICENSE.txt`, `dataset_info.json`."""
    return ABOUT.fullmatch(path.rpartition("/")[2]) is not None
