"""Files on local disks and object stores, named by one string each.

fs, inner = filesystem("s3://bucket/a.parquet")
digest = content_hash(file, cache_directory)
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard
from pyarrow import fs as pafs

from opmix_ray.errors import UserError, first_line
from opmix_ray.paths import PACKED, is_uri, packing
from opmix_ray.remote import is_local, local_path, open_uri, reason, remedy
from opmix_ray.storage import file_digest

_CHUNK, _BEGIN = 1 << 22, 512
_BROKEN = (
    pa.ArrowException, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError, ValueError, TypeError, KeyError,
    IndexError,
)  # fmt: skip
_STATE = re.compile(
    rb'\s*\{\s*"done": \d'
)  # of a run, as `RunState` writes it; `datasets` calls a file so too
_PREPARED = re.compile(rb'\s*\{\s*"version": \d+,\s*"name".*"seq_len": \d', re.DOTALL)
_TOKENIZER = re.compile(r"tokenizers/(bpe-\d+-)?[0-9a-f]{32}$")
STALE_SECONDS = 24 * 3600  # age at which what a killed process left is removed


@dataclass(frozen=True)
class InputFile:
    """One file: its path or URI, size in bytes, and time of last change in ns (0: unknown)."""

    path: str
    size: int
    mtime_ns: int


def copies_of(files: Iterable[InputFile]) -> dict[str, str]:
    """Files of this machine with the same bytes as an earlier one, each with the path of that.

    Empty ones, and those that cannot be read, are none. A file is read to its end only where another one has its size
    and its beginning.
    """
    found, first = dict[str, str](), dict[str, str]()
    local = [file for file in files if is_local(file.path) and file.size]
    for size in _alike(local, lambda file: file.size):
        for group in _alike(size, lambda file: beginning(file.path)):
            for file in group:
                with suppress(OSError):
                    other = first.setdefault(file_digest(local_path(file.path)), file.path)
                    if other != file.path:
                        found[file.path] = other
    return found


def _alike(files: Iterable[InputFile], key: Callable[[InputFile], Any]) -> list[list[InputFile]]:
    """Files with the same key, where several have it."""
    groups: dict[Any, list[InputFile]] = defaultdict(list)
    for file in files:
        with suppress(OSError):
            groups[key(file)].append(file)
    return [group for group in groups.values() if len(group) > 1]


def beginning(path: str) -> bytes:
    """The first bytes of a local file."""
    with open(local_path(path), "rb") as stream:
        return stream.read(_BEGIN)


def filesystem(path: str, *, key: str | None = None) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path inside it.

    Raises:
        UserError: the scheme is unknown, the URI cannot be parsed or carries credentials, or the name is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError("has a name that is not UTF-8", file=path, key=key, remedy="rename it") from None
    if path.startswith("file://") and path[7:].partition("/")[0] not in ("", "localhost"):
        raise UserError(
            "names another machine", key=key, value=path, remedy="write file:/// and the whole path"
        )
    if is_local(path):
        return pafs.LocalFileSystem(), os.path.abspath(local_path(path))
    return open_uri(path, key=key)


def join(base: str, *parts: str) -> str:
    """`base/parts...` for a path or URI, keeping a URI's query; a `file://` URI becomes a path."""
    base = local_path(base) if is_local(base) else base
    head, mark, query = base.partition("?") if is_uri(base) else (base, "", "")
    return "/".join([head.rstrip("/"), *parts]) + mark + query


def local_cache() -> Path:
    """Where copies of remote shards are kept: `$OPMIX_RAY_LOCAL_CACHE`, else `~/.cache/opmix_ray`."""
    return Path(os.environ.get("OPMIX_RAY_LOCAL_CACHE", "~/.cache/opmix_ray")).expanduser()


def _get_again(file: str) -> str:
    """What to do with a file that is broken."""
    tool = PACKED.get(packing(file))
    test = f"`{tool} -t` says whether it is damaged; " if tool and is_local(file) else ""
    return f"{test}get or write it again, or name only the other files"


@contextmanager
def reading(file: str, key: str) -> Iterator[None]:
    """Turn whatever a broken or unreadable file raises into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError("no such file", file=file, key=key, remedy="check the path") from None
    except PermissionError:
        raise UserError("may not be read", file=file, key=key, remedy="change its permissions") from None
    except _BROKEN as error:
        raise UserError(
            f"cannot be read: {first_line(error)}",
            file=file,
            key=key,
            remedy=remedy(error, _get_again(file)),
        ) from None
    except (MemoryError, OverflowError, RecursionError, NotImplementedError) as error:
        raise UserError(f"cannot be read: {type(error).__name__}", file=file, key=key) from None


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


def is_ours(folder: str, names: Collection[str], begin: Callable[[str], bytes]) -> bool:
    """Whether a folder holds what this program wrote: an output, or prepared data or a tokenizer of its cache.

    Args:
        folder: path.
        names: what lies in it.
        begin: reads the beginning of a file in it.
    """
    if ("config.yaml" in names and ".writer" in names) or {"compare.json", "compare.csv"} <= set(names):
        return True
    for name, pattern in (("state.json", _STATE), ("manifest.json", _PREPARED)):
        if name in names and ("config.yaml" in names or pattern is _PREPARED) and pattern.match(begin(name)):
            return True
    return "tokenizer.json" in names and _TOKENIZER.search(folder) is not None


def content_hash(file: InputFile, cache: Path) -> str:
    """Hex digest of a file's bytes; remembered by path, size and times of change below `cache`."""
    known = [file.path, file.size, file.mtime_ns]
    with suppress(
        OSError
    ):  # of a local file also when it became what it is: others give one the times of another
        known.append(os.stat(file.path).st_ctime_ns)
    identity = "\0".join(map(str, known)).encode("utf-8", "surrogateescape")
    note = cache / "hashes" / hashlib.blake2b(identity, digest_size=16).hexdigest()
    if file.mtime_ns and note.exists():
        return note.read_text()
    digest = hashlib.blake2b(digest_size=32)
    system, inner = filesystem(file.path)
    with reading(file.path, "data"), system.open_input_stream(inner, compression=None) as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    with suppress(OSError):  # it is only remembered; a cache that may not be written can still be read
        write_atomically(note, digest.hexdigest().encode())
    return digest.hexdigest()


def hash_of(file: Path) -> str:
    """What `content_hash` gives for a local file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def check_files(directory: Path, hashes: Mapping[str, str], memory: Path, remedy: str) -> None:
    """Refuse a local directory in which a file is not what was written.

    Args:
        directory: local.
        hashes: `hash_of` each file, by its name.
        memory: where hashes of files that did not change are remembered.
        remedy: what to do.

    Raises:
        UserError: names the file.
    """
    for name, expected in hashes.items():
        file = directory / name
        there = file.stat() if file.exists() else None
        if (
            there is None
            or content_hash(InputFile(str(file), there.st_size, there.st_mtime_ns), memory) != expected
        ):
            raise UserError("is damaged" if there else "is gone", file=file, remedy=remedy)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a local file by replace, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    os.replace(temporary, path)


def exists(path: str) -> bool:
    """Whether a file of the cache is there, local or remote.

    Raises:
        UserError: the place does not answer.
    """
    system, inner = filesystem(path, key="data.cache")
    try:
        return bool(system.get_file_info(inner).type == pafs.FileType.File)
    except (pa.ArrowException, OSError) as error:
        raise _unusable(path, error) from None


def _unusable(path: str, error: Exception) -> UserError:
    return UserError(
        f"cannot be used: {reason(error)}",
        key="data.cache",
        value=path,
        remedy=remedy(error, "make room, or name another place"),
    )


def upload(directory: Path, uri: str, last: str) -> None:
    """Copy a local directory's files to a URI, the file named `last` after all others."""
    system, inner = filesystem(uri)
    system.create_dir(inner, recursive=True)
    names = sorted((path.name for path in directory.iterdir()), key=lambda name: (name == last, name))
    for name in names:
        with open(directory / name, "rb") as source, system.open_output_stream(f"{inner}/{name}") as target:
            shutil.copyfileobj(source, target, _CHUNK)


def local_directory(path: str) -> Path:
    """A local directory with the files of a prepared directory or tokenizer; downloads from a URI once.

    Raises:
        UserError: there is no such directory.
    """
    if is_local(path):
        return Path(filesystem(path)[1])
    system, inner = filesystem(path)
    parent, name = inner.rstrip("/").split("/")[-2:]  # names below the cache hold a digest of the content
    target = local_cache() / parent / name
    if target.exists():
        return target
    try:
        entries = system.get_file_info(pafs.FileSelector(inner))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"cannot be listed: {reason(error)}", file=path, remedy=remedy(error, "prepare the data again")
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    for entry in entries:
        if entry.type == pafs.FileType.File:
            with (
                system.open_input_stream(entry.path, compression=None) as source,
                open(temporary / entry.base_name, "wb") as sink,
            ):
                shutil.copyfileobj(source, sink, _CHUNK)
    put_in_place(temporary, target)
    return target


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a finished temporary directory into place; one that is already there wins."""
    temporary.chmod(0o755)
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def notes(cache: str) -> Path:
    """Where digests of files are remembered: in the cache, or on this machine where that is a URI."""
    return Path(filesystem(cache)[1]) if is_local(cache) else local_cache()


def publish(path: str, make: Callable[[Path], None], *, last: str) -> None:
    """Make a directory somewhere else and put it in place whole; one that came first wins.

    Args:
        path: local directory or URI.
        make: writes the files into the empty directory it is given.
        last: file whose being there says that the directory is whole.

    Raises:
        UserError: the place cannot be written.
    """
    remote = not is_local(path)
    target = Path(filesystem(path)[1])
    try:
        if not remote:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
        temporary = Path(tempfile.mkdtemp(dir=None if remote else target.parent, prefix=".tmp-"))
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        make(temporary)
        if remote:
            upload(temporary, path, last)
        else:
            put_in_place(temporary, target)
    except (pa.ArrowException, OSError) as error:  # what is read raises a UserError of its own
        raise _unusable(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(directory: Path) -> None:
    for left in directory.glob(".tmp-*"):
        try:
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
