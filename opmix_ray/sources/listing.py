"""Which files a name, a folder, a glob, a URI or a saved data set stands for: every real file once.

    found = listing("data", key="--data")
    found.files, found.hidden, found.outside
    files = expand("data/**/*.jsonl.gz", key="data.domains.code.path")

Names inside a folder that begin with `.` or `_` (`.git`, `.ipynb_checkpoints`, `_temporary`), and what a file server or
an office program puts beside files (`@eaDir`, `~$a.csv`), are left out; a hidden file or folder that is named itself is
read. Links are followed, a link to where one already is or was is not.
"""

from __future__ import annotations

import glob
import json
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
from opmix_ray.paths import BIN, IDX, file_format, is_uri, of_data, packing
from opmix_ray.remote import is_local, local_path, missing_bucket, reason, remedy
from opmix_ray.sources.files import InputFile, filesystem, join, reading
from opmix_ray.sources.lines import digest_of_text


def data_set_files(path: str, *, key: str, required: bool) -> list[InputFile] | None:
    """The Arrow files of a saved data set in the order its state.json gives.

    Args:
        path: directory or URI.
        key: configuration key named in errors.
        required: whether anything else is an error (else: None).

    Raises:
        UserError: the directory holds several splits, or its state.json is broken.
    """
    if "*" in path and not required:
        return None
    system, inner = filesystem(path, key=key)
    with reading(path, key):
        infos = system.get_file_info([f"{inner}/state.json", f"{inner}/dataset_dict.json"])
        is_data_set, is_dict = (info.type == pafs.FileType.File for info in infos)
        if is_dict and not is_data_set:
            splits = _json(system, f"{inner}/dataset_dict.json").get("splits") or []
            raise UserError(
                f"holds several splits: {', '.join(map(str, splits)) or 'none'}",
                key=key,
                value=path,
                remedy=f"name one, for example {join(path, str(splits[0]) if splits else 'train')}",
            )
        if not is_data_set:
            if not required:
                return None
            raise UserError(
                "is not a directory written by datasets.save_to_disk: it has no state.json",
                key=key,
                value=path,
                remedy="check the path, or set the format to arrow, parquet or jsonl",
            )
        names = [entry["filename"] for entry in _json(system, f"{inner}/state.json")["_data_files"]]
        if any("/" in name or "\\" in name for name in names):
            raise UserError("its state.json names files outside", key=key, value=path, remedy="save it again")
        files = system.get_file_info([f"{inner}/{name}" for name in names])
    missing = [info.base_name for info in files if info.type != pafs.FileType.File]
    if missing or not names:
        raise UserError(
            f"lacks its data files {', '.join(missing)}",
            key=key,
            value=path,
            remedy="save the data set again",
        )
    return [
        InputFile(join(path, name), info.size or 0, info.mtime_ns or 0)
        for name, info in zip(names, files, strict=True)
    ]


def _json(system: pafs.FileSystem, inner: str) -> dict[str, Any]:
    with system.open_input_stream(inner) as stream:
        loaded = json.loads(stream.read())
    if not isinstance(loaded, dict):
        raise ValueError(f"{inner} is not a JSON object")
    return loaded


# What names of hidden files and folders begin with; and of office programs, file servers and file systems.
HIDDEN = (
    ".",
    "_",
    "~$",
    "@eaDir",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "node_modules",
)
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
    """

    files: list[InputFile] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


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
    files, twins = _without_twins(files)
    for words, names in (("follows links that lead out of it", found.outside),
                         ("leaves out links to what is not there", found.broken),
                         ("leaves out what lies there compressed otherwise, or not at all", twins)):  # fmt: skip
        if names:
            _tell(key, path, words, tuple(names))
    if recognised_only and folder and [file.path for file in files] != [path]:
        kept = set(of_data([file.path for file in files]))
        files = [file for file in files if file.path in kept]
    if not files:
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


def _without_twins(files: list[InputFile]) -> tuple[list[InputFile], list[str]]:
    """Files of this machine without those whose text lies beside them packed in another way; and the paths of these."""
    same: dict[str, list[InputFile]] = {}
    for file in sorted(files, key=lambda file: (len(packing(file.path)), file.path)):
        if is_local(file.path):
            same.setdefault(file.path[: len(file.path) - len(packing(file.path))], []).append(file)
    twins: set[str] = set()
    for group in same.values():
        texts = [digest_of_text(file) if len(group) > 1 else None for file in group]
        twins |= {file.path for n, file in enumerate(group) if texts[n] and texts[n] in texts[:n]}
    return [file for file in files if file.path not in twins], sorted(twins)


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
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
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
    for info in _files_below(system, inner):
        parts = info.path[len(inner) :].strip("/").split("/")
        name = f"{prefix}/{'/'.join(parts)}{mark}{query}"
        if "*" in plain:
            found.files += [_input(name, info)] if _fits(parts, pattern) else []
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
