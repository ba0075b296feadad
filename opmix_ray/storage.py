"""A directory of results, local or on any `pyarrow.fs` file system, in which no file is half there; JSON by its types.

    store = Storage("s3://bucket/run")
    store.write_json("state.json", {"step": 3})
    store.append("metrics.jsonl", '{"step": 3}\n')

Local files are written by replace; object stores publish an object only when it is whole.

state = checked(RunState, storage.read_json("state.json"), file="runs/demo/state.json")

    seal(directory)               # when all files are there
    fault(directory)              # None, or "optimizer.pt is damaged"
    check_sealed(directory)       # the same as an error

A part that was sealed on its own is listed by its checksums alone and looked into as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import TypeAdapter, ValidationError

from opmix_ray.errors import UserError
from opmix_ray.harmless import plain
from opmix_ray.remote import is_local, local_path, open_uri, reason, remedy


def split_file(file: str) -> tuple[Storage, str]:
    """The directory of a file, local or a URI, and the file's name in it."""
    head, mark, query = file.partition("?") if not is_local(file) else (file, "", "")
    directory, slash, name = head.rpartition("/")
    return Storage((directory or slash or ".") + mark + query), name


class Storage:
    """Files below one directory or URI.

    Args:
        uri: local path or `pyarrow.fs` URI; a local path is made absolute.

    Raises:
        UserError: the URI names an unknown file system, or carries credentials.
    """

    def __init__(self, uri: str) -> None:
        self.is_local = is_local(uri)
        if self.is_local:
            self.uri = str(Path(local_path(uri)).absolute())
            self._fs: pafs.FileSystem = pafs.LocalFileSystem()
            self._root = self.uri
        else:
            self.uri = uri.rstrip("/")
            self._fs, root = open_uri(uri, key="output")
            self._root = root.rstrip("/")
        self._appended: dict[str, str] = {}
        self.before_write: Callable[[], None] | None = None  # raises where nothing may be written any more

    @property
    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """The file system and the directory inside it."""
        return self._fs, self._root

    def child(self, name: str) -> Storage:
        """The directory `name` inside this one."""
        inside = Storage(self.path(name))
        inside.before_write = self.before_write
        return inside

    def path(self, name: str) -> str:
        """The full path or URI of a file or directory in here."""
        head, mark, query = self.uri.partition("?") if not self.is_local else (self.uri, "", "")
        return f"{head}{'/' if name else ''}{name}{mark}{query}"

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or directory of that name."""
        return self._guard("looked at", lambda: self._info(name).type != pafs.FileType.NotFound)

    def names(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """Paths inside a directory, relative to it and sorted; empty where there is none."""

        def listed() -> list[str]:
            base = self._inner(name)
            found = self._fs.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=recursive))
            return sorted(info.path[len(base) :].lstrip("/") for info in found)

        return self._guard("listed", listed)

    def read_bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            UserError: there is no such file, or it cannot be read.
        """

        def read() -> bytes:
            with self._fs.open_input_stream(self._inner(name), compression=None) as stream:
                return stream.read()

        return self._guard("read", read, name)

    def read_text(self, name: str) -> str:
        """A text file's content.

        Raises:
            UserError: it is missing, cannot be read, or is not text.
        """
        try:
            return self.read_bytes(name).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError("is not text", file=self.path(name), remedy="restore the file") from None

    def read_json(self, name: str) -> Any:
        """A JSON file's content.

        Raises:
            UserError: it is missing or not JSON.
        """
        content = self.read_bytes(name)  # whose own errors are ValueErrors too
        try:
            return json.loads(content)
        except ValueError as error:
            raise UserError(
                f"is not valid JSON: {error}", file=self.path(name), remedy="restore the file"
            ) from None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: a reader sees the old one or the new one.

        Raises:
            UserError: the disk is full, or the place may not be written to.
        """
        self._appended.pop(name, None)
        self._guard("written", lambda: self._replace(name, data), name)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole text file."""
        self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """Write a whole JSON file; null for what is no finite number."""
        self.write_text(name, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append(self, name: str, text: str) -> None:
        """Add whole lines to the end of a file; on an object store the object is written again."""

        def add() -> None:
            if self.is_local:
                path = Path(self._inner(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "ab") as stream:
                    stream.write(text.encode("utf-8"))
                    stream.flush()
                    os.fsync(stream.fileno())
                return
            if name not in self._appended:
                self._appended[name] = self.read_text(name) if self.exists(name) else ""
            self._appended[name] += text
            self._replace(name, self._appended[name].encode("utf-8"))

        self._guard("written", add, name)

    def lines(self, name: str) -> list[str]:
        """The complete lines of a file; one that a crash cut off is left out. Empty where there is no file."""
        if not self.exists(name):
            return []
        text = self.read_text(name)
        whole, _, _ = text.rpartition("\n")
        return whole.split("\n") if whole else []

    def delete(self, name: str) -> None:
        """Remove a file or directory, if there."""

        def remove() -> None:
            kind = self._info(name).type
            if kind == pafs.FileType.Directory:
                self._fs.delete_dir(self._inner(name))
            elif kind == pafs.FileType.File:
                self._fs.delete_file(self._inner(name))

        self._appended = {k: v for k, v in self._appended.items() if not k.startswith(name)}
        self._guard("removed", remove, name)

    def upload(self, directory: str | Path, name: str, *, last: str | None = None) -> None:
        """Copy a local directory's files; a local target appears as a whole.

        Args:
            directory: local.
            name: of the target.
            last: file that an object store gets after all others, so that its being there says that they are.
        """

        def copy() -> None:
            target = self._inner(name)
            if self.is_local:
                staging = f"{target}.part"
                shutil.rmtree(staging, ignore_errors=True)
                shutil.copytree(directory, staging)
                shutil.rmtree(target, ignore_errors=True)
                os.rename(staging, target)
                return
            files = [path for path in sorted(Path(directory).rglob("*")) if path.is_file()]
            for path in sorted(files, key=lambda path: path.name == last):
                inner = f"{target}/{path.relative_to(directory).as_posix()}"
                pafs.copy_files(str(path), inner, destination_filesystem=self._fs)

        self._guard("written", copy, name)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local directory with the files of a directory in here, for the time of a `with`.

        It is the directory itself where that is local, else a copy that is removed at the end.

        Raises:
            UserError: it is missing or cannot be read.
        """
        if self.is_local:
            yield Path(self._inner(name))
            return
        with tempfile.TemporaryDirectory(prefix="opmix-") as target:
            copy = partial(pafs.copy_files, self._inner(name), target, source_filesystem=self._fs)
            self._guard("read", copy, name)
            yield Path(target)

    def _inner(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _info(self, name: str) -> pafs.FileInfo:
        return self._fs.get_file_info(self._inner(name))

    def _replace(self, name: str, data: bytes) -> None:
        target = self._inner(name)
        if not self.is_local:
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _guard(self, verb: str, action: Any, name: str = "") -> Any:
        if verb in ("written", "removed") and self.before_write is not None:
            self.before_write()
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError("no such file", file=self.path(name), remedy="check the path") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"cannot be {verb}: {reason(error)}", file=self.path(name), remedy=_remedy(error)
            ) from None


def _remedy(error: BaseException) -> str:
    text = str(error)
    if "No space left" in text or "quota" in text.lower():
        return "free some space and run again with --resume; nothing before the last checkpoint is lost"
    return remedy(error, "check the path and run again with --resume")


T = TypeVar("T")
REMEDY = "restore the file, or use --overwrite to begin again"


def checked(kind: type[T], value: Any, *, file: object, remedy: str = REMEDY) -> T:
    """A JSON value as what it should be; numbers are not made of text, nor text of numbers.

    Args:
        kind: a dataclass, a TypedDict or a type such as `dict[str, float]`.
        value: as `json.loads` gives it.
        file: that it was read from, for the error.
        remedy: what to do if it has another shape.

    Raises:
        UserError: names the file and what in it is wrong.
    """
    try:
        # by way of JSON, where a mapping may become a dataclass though nothing else is converted
        return _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"holds something else than it should ({f'{place}: ' if place else ''}{first['msg']})"
        raise UserError(problem, file=file, remedy=remedy) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"holds something else than it should ({error})", file=file, remedy=remedy) from None


def read_record(storage: Storage, name: str, kind: type[T], *, remedy: str = REMEDY) -> T:
    """A JSON file of a run's output; see `checked`."""
    return checked(kind, storage.read_json(name), file=storage.path(name), remedy=remedy)


def read_records(storage: Storage, name: str, kind: type[T], *, remedy: str = REMEDY) -> list[T]:
    """The complete lines of a file, each a JSON value; empty where there is no file."""
    found = []
    for number, line in enumerate(storage.lines(name), start=1):
        file = f"{storage.path(name)}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError("is not valid JSON", file=file, remedy=remedy) from None
        found.append(checked(kind, value, file=file, remedy=remedy))
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


SUMS = "checksums.json"


def seal(directory: Path | str) -> None:
    """Write `checksums.json`: SHA-256 of every file by its name; links are followed."""
    directory = Path(directory)
    sums = {name: file_digest(directory / name) for name in sorted(_files(directory))}
    (directory / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def fault(directory: Path | str) -> str | None:
    """What is wrong with a sealed directory, in words; None: every file is what it was. Others may be new."""
    directory = Path(directory)
    if not directory.is_dir():
        return "is gone"
    try:
        sums = json.loads((directory / SUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"has no {SUMS}"
    except (OSError, ValueError):
        sums = None
    if not isinstance(sums, dict) or not sums:
        return f"has a damaged {SUMS}"
    for name, digest in sums.items():
        file = directory / name
        try:
            same = file_digest(file) == digest
        except FileNotFoundError:
            return f"lacks {name}"
        except OSError as error:
            return f"cannot be read: {name}: {error.strerror}"
        if not same:
            return f"has a damaged {name}"
        if file.name == SUMS:
            inside = fault(file.parent)
            if inside is not None:
                return f"{inside} in {name.rpartition('/')[0]}"
    return None


def check_sealed(directory: Path | str, *, remedy: str, shown: object = None) -> None:
    """Refuse a sealed directory that is not what it was.

    Args:
        directory: local.
        remedy: what to do.
        shown: its name for a person; none: the directory.

    Raises:
        UserError: see `fault`.
    """
    why = fault(directory)
    if why is not None:
        raise UserError(why, file=shown or directory, remedy=remedy)


def is_sealed(directory: Path | str) -> bool:
    """Whether a directory has checksums."""
    return (Path(directory) / SUMS).is_file()


def _files(directory: Path) -> Iterator[str]:
    """Names of all files but the directory's own checksums; of a sealed part its checksums alone."""
    for place, folders, names in os.walk(directory, followlinks=True):
        here = Path(place)
        if here != directory and SUMS in names:
            names, folders[:] = [SUMS], []
        for name in names:
            if here != directory or name != SUMS:
                yield (here / name).relative_to(directory).as_posix()


def file_digest(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
