"""Which files a name, a folder, a glob, a URI or a saved data set stands for: every real file once.

    found = listing("data", key="--data")
    found.files, found.hidden, found.outside
    files = expand("data/**/*.jsonl.gz", key="data.domains.code.path")

Names inside a folder that begin with `.` or `_` (`.git`, `.ipynb_checkpoints`, `_temporary`), and what a file server or
an office program puts beside files (`@eaDir`, `~$a.csv`), are left out; a hidden file or folder that is named itself is
read. Folders inside it with the output of a run or with prepared data are left out too. Links are followed, a link to
where one already is or was is not.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from opmix_ray.errors import UserError
from opmix_ray.paths import BIN, IDX, ending_of, file_format, is_uri, of_data, packing
from opmix_ray.remote import is_local, local_path, missing_bucket, reason, remedy
from opmix_ray.sources.files import InputFile, beginning, filesystem, is_ours, reading
from opmix_ray.sources.files import data_set_files as data_set_files
from opmix_ray.sources.lines import HEAD, digest_of_text, is_blank, lines
from opmix_ray.sources.plain import objects
from opmix_ray.sources.readers import arrow_batches, bounded, json_object, open_parquet, rows_at_once

# What names of hidden files and folders begin with; and of office programs, file servers and file systems.
HIDDEN = (
    ".", "_", "~$", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    "node_modules",
)  # fmt: skip
_SHOWN = 3


@dataclass
class Listing:
    """What was found.

    Args:
        files: each real file once, sorted by path.
        hidden: files and folders left out for their names.
        outside: links that lead out of the folder, as `link -> target`; they are followed.
        loops: links that lead to a folder that holds the one they are in; they are not.
        broken: links to what is not there.
        ours: folders left out that hold the output of a run, or a part of our cache.
    """

    files: list[InputFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)


def expand(path: str, *, key: str, recognised_only: bool = True) -> list[InputFile]:
    """Files that a file name, directory, glob or URI stands for, sorted by path.

    Args:
        path: what the user wrote.
        key: configuration key named in errors.
        recognised_only: inside a directory keep only files with a known ending.

    Raises:
        UserError: nothing matches, a link leads nowhere, or the place cannot be listed.
    """
    found = listing(path, key=key)
    if gone := next((link for link in found.broken if file_format(link)), None):
        raise UserError(
            f"is a link to {os.readlink(gone)}, which is not there", file=gone, key=key,
            remedy="get the file (git annex get, dvc pull), or remove the link",
        )  # fmt: skip
    folder = os.path.isdir(local_path(path)) if is_local(path) else "*" not in path
    files = _of_data_sets(found.files, key) if folder else found.files
    _refuse_lonely(files, key)
    files = without_twins(files, path, key)
    for words, names in (("follows links that lead out of it", found.outside),
                         ("leaves out outputs of runs and what was prepared", found.ours),
                         ("leaves out links to what is not there", found.broken)):  # fmt: skip
        if names:
            _tell(key, path, words, tuple(names))
    if recognised_only and folder and [file.path for file in files] != [path]:
        kept = set(of_data([file.path for file in files]))
        files = [file for file in files if file.path in kept]
    if not files:
        if found.ours:
            raise UserError(
                "holds nothing but outputs of runs and what was prepared", key=key, value=path,
                remedy="name the data, not what was made of them",
            )  # fmt: skip
        raise UserError("no file matches", key=key, value=path, remedy="check the path" + _hint(path))
    return files


def _refuse_lonely(files: list[InputFile], key: str) -> None:
    """Raise a `UserError` for a Megatron index without its ids, where others have theirs or there is nothing else."""
    names = {file.path.partition("?")[0].lower(): file for file in files}
    found = [name for name in names if name.endswith(IDX)]
    if found and (len(found) == len(names) == 1 or any(name.endswith(BIN) for name in names)):
        missing = (name for name in found if name.removesuffix(IDX) + BIN not in names)
        if alone := next((name for name in missing if not os.path.exists(names[name].path[:-4] + BIN)), None):
            raise UserError(
                "is an index without the .bin file that it belongs to", file=names[alone].path, key=key,
                remedy="get that too, or take the index away",
            )  # fmt: skip


def _of_data_sets(files: list[InputFile], key: str) -> list[InputFile]:
    """Without what `datasets` leaves beside the files of a saved data set: caches of what was computed from it.

    Raises:
        UserError: a file of a saved data set is not there.
    """
    folders = {_folder_of(file) for file in files if file_format(file.path) == "arrow"}
    saved = {each: data_set_files(each, key=key, required=False) for each in folders}
    names = {folder: {os.path.basename(file.path) for file in own} for folder, own in saved.items() if own}
    return [
        file
        for file in files
        if file_format(file.path) != "arrow"
        or os.path.basename(file.path) in names.get(_folder_of(file), {os.path.basename(file.path)})
    ]


def _folder_of(file: InputFile) -> str:
    return file.path.partition("?")[0].rpartition("/")[0]


def without_twins(files: list[InputFile], path: str, key: str) -> list[InputFile]:
    """Files of this machine without those whose text lies beside them packed, or written, in another way.

    Args:
        files: what was found.
        path: where, to be told.
        key: configuration key, to be told.
    """
    twins: set[str] = set()
    for content, end in ((digest_of_text, packing), (_ends, ending_of)):
        same: dict[str, list[InputFile]] = {}
        for file in files:
            if is_local(file.path) and file.path not in twins:
                same.setdefault(file.path[: len(file.path) - len(end(file.path))], []).append(file)
        for group in same.values():
            group.sort(key=_worse)
            contents = [content(file) if len(group) > 1 else None for file in group]
            twins |= {
                file.path for n, file in enumerate(group) if contents[n] and contents[n] in contents[:n]
            }
    if twins:
        words = "leaves out what lies there in another format, compressed otherwise, or not at all"
        _tell(key, path, words, tuple(sorted(twins)))
    return [file for file in files if file.path not in twins]


_OF_ROWS = ("jsonl", "parquet", "arrow", "json", "csv")  # formats, in the order in which one is kept


def _worse(file: InputFile) -> tuple[int, int, str]:
    kind = str(file_format(file.path))
    return len(packing(file.path)), _OF_ROWS.index(kind) if kind in _OF_ROWS else 0, file.path


@cache
def _ends(file: InputFile) -> tuple[int, str, str] | None:
    """How many rows a file has, and the longest text of the first and of the last; None where they cannot be read."""
    count, ends = 0, list[dict[str, Any]]()
    if file_format(file.path) not in _OF_ROWS:
        return None
    try:
        with reading(file.path, "data"):
            for many, *rows in _some_rows(file):
                count, ends = count + many, [(ends or rows)[0], rows[-1]]
    except UserError:
        return None
    first, last = [max(_texts(row), key=len, default="") for row in ends] or ["", ""]
    return (count, first, last) if first and last else None


def _some_rows(file: InputFile) -> Iterator[tuple[Any, ...]]:
    """For one part of a file after the other: how many rows it has, its first one and its last one."""
    kind = file_format(file.path)
    if kind in ("parquet", "arrow"):
        with filesystem(file.path)[0].open_input_file(filesystem(file.path)[1]) as stream:
            table = open_parquet(stream, file.path, "data") if kind == "parquet" else None
            found = table.iter_batches(rows_at_once(table)) if table else None
            found = found or arrow_batches(stream, file.path, "data")[1]
            for batch in bounded(found, stream.size(), file.path, "data"):
                if many := batch.num_rows:
                    yield many, *batch.slice(0, 1).to_pylist(), *batch.slice(many - 1).to_pylist()
    elif kind == "jsonl":
        first, last, count = b"", b"", 0
        for line in lines(file.path, "data"):
            if not is_blank(line):
                first, last, count = first or line, line, count + 1
        if count:
            yield count, *(json_object(line, file.path, "data", 0) for line in (first, last))
    else:
        for row, _ in objects(file.path, "data"):
            yield 1, row, row


def _texts(value: Any) -> list[str]:
    """Every text in a row, and every list of numbers written out."""
    if isinstance(value, str):
        return [value]
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, list) and inner and all(isinstance(each, int | float) for each in inner):
        return [str(inner)]
    return [text for each in inner for text in _texts(each)]


@cache
def _tell(key: str, path: str, words: str, names: tuple[str, ...]) -> None:
    """Say once in a process what is done with some of the files."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    logging.getLogger(__name__).warning(
        "%s = %s: %s: %s%s", key, path, words, ", ".join(names[:_SHOWN]), more
    )


def listing(path: str, *, key: str) -> Listing:
    """Everything that a file name, directory, glob or URI stands for.

    Raises:
        UserError: the place cannot be listed, or there is no such bucket.
    """
    system, inner = filesystem(_fixed_part(path), key=key)
    try:
        found = _local(local_path(path)) if is_local(path) else _remote(path, system, inner)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, re.error) as error:
        raise UserError(
            f"cannot be listed: {reason(error)}", key=key, value=path, remedy=remedy(error, "check the path")
        ) from None
    if not found.files and not is_local(path) and missing_bucket(system, inner):
        raise UserError("there is no such bucket", key=key, value=path, remedy="check the bucket's name")
    found.files.sort(key=lambda file: file.path)
    return found


def identity(path: str) -> str:
    """The same text for every name of the same file: links, hard links, `./`, `file://`."""
    if not is_local(path):
        return path
    plain = local_path(path)
    try:
        status = os.stat(plain)
    except OSError:
        return plain
    return f"{status.st_dev}:{status.st_ino}" if status.st_nlink > 1 else os.path.realpath(plain)


def _local(path: str) -> Listing:
    walk = _Walk(path)
    if os.path.isdir(path):
        walk.folder(path)
    elif os.path.lexists(path):
        walk.file(path)
    elif "**" in path.split("/"):
        parts = path.split("/")
        depth = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        base = "/".join(parts[:depth])
        if os.path.isdir(base):
            walk.folder(base)
        pattern = parts[depth:]
        kept = [
            file for file in walk.found.files if _fits(file.path[len(base) :].strip("/").split("/"), pattern)
        ]
        walk.found.files, walk.found.outside = kept, []
    elif glob.has_magic(path):
        for hit in sorted(glob.glob(path), key=lambda hit: (os.path.islink(hit), hit)):
            if any(map(_is_hidden, hit.split("/"), path.split("/"))):
                walk.found.hidden.append(hit)
            elif not os.path.isdir(hit):
                walk.file(hit)
    return walk.found


class _Walk:
    """Looks through a folder: what really lies there first, then what links lead to."""

    def __init__(self, root: str) -> None:
        self.found = Listing()
        self._root = os.path.realpath(root)
        self._seen: set[str] = set()
        self._place: dict[str, int] = {}
        self._links: list[str] = []

    def file(self, path: str) -> None:
        if not os.path.exists(path):
            self.found.broken.append(path)
        elif os.path.isfile(path):
            status, files = os.stat(path), self.found.files
            file, name = InputFile(path, status.st_size, status.st_mtime_ns), identity(path)
            place = self._place.setdefault(name, len(files))
            if place == len(files):
                files.append(file)
            elif file_format(path) and not file_format(files[place].path):  # the name that says what it is
                files[place] = file

    def folder(self, root: str) -> None:
        self._scan(root)
        while self._links:
            link = self._links.pop(0)
            target = os.path.realpath(link)
            if self._root.startswith(target.rstrip("/") + "/") or target == self._root:
                self.found.loops.append(link)
                continue
            if not target.startswith(self._root + "/") and os.path.exists(target):
                self.found.outside.append(f"{link} -> {target}")
            if os.path.isdir(target):
                self._scan(link)
            else:
                self.file(link)

    def _scan(self, folder: str) -> None:
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            if (real := os.path.realpath(folder)) in self._seen:
                continue
            self._seen.add(real)
            _refuse_revisions(folder)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            names = {entry.name for entry in entries}
            if real != self._root and is_ours(folder, names, lambda name, at=real: beginning(f"{at}/{name}")):  # type: ignore[misc]
                self.found.ours.append(folder)
                continue
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.name.startswith(HIDDEN):
                    self.found.hidden.append(path)
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir():
                    waiting.append(path)
                else:
                    self.file(path)


def _refuse_revisions(folder: str) -> None:
    """Raise a `UserError` for a data set in the Hub's cache if a revision has files that the main one has not."""
    snapshots = Path(folder, "snapshots")
    if not (snapshots.is_dir() and Path(folder, "refs").is_dir() and Path(folder, "blobs").is_dir()):
        return
    files = {
        each.name: {os.path.realpath(file) for file in each.rglob("*") if file_format(file.name)}
        for each in sorted(snapshots.iterdir())
    }
    ref = Path(folder, "refs", "main")
    main = ref.read_text().strip() if ref.is_file() else max(files, default="")
    if set().union(*files.values()) - files.get(main, set()):
        raise UserError(
            f"holds several revisions of one data set: {', '.join(name[:7] for name in files)}", file=folder,
            remedy=f"name one: {snapshots / main}",
        )  # fmt: skip


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a name is one that is left out, unless the pattern begins as such names do, or is the name itself."""
    start = next((start for start in HIDDEN if name.startswith(start)), None)
    return start is not None and not pattern.startswith(start[0]) and name != pattern


def _remote(path: str, system: pafs.FileSystem, inner: str) -> Listing:
    found = Listing()
    plain, mark, query = path.partition("?")
    if "*" not in plain:
        info = system.get_file_info(inner)
        if info.type == pafs.FileType.File:
            found.files.append(_input(path, info))
        if info.type != pafs.FileType.Directory:
            return found
    prefix = _fixed_part(plain)
    pattern = [re.sub(r"([\[?])", r"[\1]", part) for part in plain[len(prefix) :].strip("/").split("/")]
    infos = {
        tuple(info.path[len(inner) :].strip("/").split("/")): info for info in _files_below(system, inner)
    }
    inside: dict[tuple[str, ...], set[str]] = {}
    for parts in infos:
        for depth in range(1, len(parts)):
            inside.setdefault(parts[:depth], set()).add(parts[depth])

    def begin(file: str) -> bytes:
        with system.open_input_stream(f"{inner}/{file}", compression=None) as stream:
            return bytes(stream.read(HEAD))

    ours = {
        each
        for each, names in inside.items()
        if ("*" not in plain or "**" in plain)
        and is_ours("/".join(each), names, lambda name, each=each: begin("/".join([*each, name])))  # type: ignore[misc]
    }
    found.ours += [f"{prefix}/{'/'.join(each)}{mark}{query}" for each in sorted(ours)]
    for parts, info in infos.items():
        name = f"{prefix}/{'/'.join(parts)}{mark}{query}"
        if any(parts[:depth] in ours for depth in range(1, len(parts))):
            continue
        if "*" in plain:
            found.files += [_input(name, info)] if _fits(list(parts), pattern) else []
        elif any(part.startswith(HIDDEN) for part in parts):
            found.hidden.append(name)
        else:
            found.files.append(_input(name, info))
    return found


def _files_below(system: pafs.FileSystem, inner: str) -> Iterator[pafs.FileInfo]:
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=True)
    return (info for info in system.get_file_info(selector) if info.type == pafs.FileType.File)


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path are those of a glob, in which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        seen = next((at for at, part in enumerate(parts) if _is_hidden(part, first)), len(parts))
        return any(_fits(parts[start:], rest) for start in range(seen + 1)) or (
            not rest and seen == len(parts) > 0
        )
    if not parts or _is_hidden(parts[0], first):
        return False
    return fnmatchcase(parts[0], first) and _fits(parts[1:], rest)


def _fixed_part(path: str) -> str:
    """The part of a URI's path before the first `*`, cut at a slash, with the URI's query; a local path as it is."""
    if is_local(path):
        return path
    pattern, mark, query = path.partition("?")
    return (
        (pattern.partition("*")[0].rpartition("/")[0] if "*" in pattern else pattern).rstrip("/")
        + mark
        + query
    )


def _input(path: str, info: pafs.FileInfo) -> InputFile:
    return InputFile(path, info.size or 0, info.mtime_ns or 0)


def _hint(path: str) -> str:
    if is_uri(path):
        return ""
    parent = Path(path).expanduser().absolute().parent
    if not parent.is_dir():
        return f": there is no directory {parent}"
    return ", a glob such as data/*.jsonl.gz, or a directory with .jsonl, .parquet, .arrow, .csv, .txt or .bin files"
