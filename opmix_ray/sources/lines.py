"""Lines of a file, plain or compressed, within limits: a small file may unpack to more than a machine holds.

for line in lines("web.jsonl.zst", "data.domains.web.path"):
    ...
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import pyarrow as pa
import zstandard

from opmix_ray.errors import UserError
from opmix_ray.paths import PACKED, packing
from opmix_ray.sources.files import InputFile, filesystem

LONGEST = 1 << 28  # bytes of a line
FREE = 1 << 30  # bytes that any file may unpack to
RATIO = 1000  # how many times its size a file may unpack to beyond that; text gives 3 to 30
_WINDOW = 1 << 31  # of zstd: what `zstd --long=31` asks for
_READ, _STEP = 1 << 20, 1 << 11  # compressed bytes read, and unpacked at once: to at most 64 MiB
_POINTERS = {
    rb"(\xef\xbb\xbf)?version https://(git-lfs|hawser)\.github\.com/spec/": ("Git LFS", "git lfs pull"),
    rb"\S*/annex/objects/\S+\s*$": ("git-annex", "git annex get"),
}
_POINTER_BYTES = 1024
HEAD = 512  # bytes of a file that tell
_MAGIC = {
    rb"\x1f\x9d": "data compressed with compress",
    rb"\x5d\0\0.\0.{3}": "data compressed with lzma",
    rb"\x1f\x8b\x08": "data compressed with gzip",
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "data compressed with zstd",  # or a frame to be skipped
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": "data compressed with bzip2",
    rb"\xfd7zXZ\0": "data compressed with xz",
    rb"\x04\x22\x4d\x18": "data compressed with lz4",
    rb"PK\x03\x04": "a zip archive",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive",
    rb"Rar!\x1a\x07": "a rar archive",
    rb".{257}ustar": "a tar archive",
    rb"PAR1": "Parquet",
    rb"PARE": "encrypted Parquet",
    rb"ARROW1": "Arrow",
    rb"\xff{4}.{4}\x10\0\0\0": "an Arrow stream",
    rb"FEA1": "Feather of version 1",
    rb"ORC\n": "ORC",
    rb"Obj\x01": "Avro",
    rb"\x89HDF": "HDF5",
    rb"SQLite format 3": "an SQLite database",
    rb"%PDF-": "a PDF",
    rb"\x93NUMPY": "a NumPy array",
    rb"\x80[\x04\x05]\x95.{3}\0{5}|\x80\x02\x8a\nl\xfc\x9cF\xf9": "a pickle of Python",
    rb".{4}\0{4}\{\"": "safetensors",
}
_KNOWN = [(re.compile(start, re.DOTALL), what) for start, what in _MAGIC.items()]
_ENCODINGS = {  # by how a file begins: with a mark, or with ASCII
    rb"\xff\xfe\0\0|\0\0\xfe\xff|[\t-~]\0{3}[\t-~]\0{3}|\0{3}[\t-~]\0{3}[\t-~]": "UTF-32",
    rb"\xff\xfe|\xfe\xff": "UTF-16",
    rb"[\t-~]\0[\t-~]\0": "UTF-16LE",
    rb"\0[\t-~]\0[\t-~]": "UTF-16BE",
}
_NOT_WESTERN = "ENCODING (WINDOWS-1251 for Cyrillic, GB18030 for Chinese, SHIFT_JIS for Japanese)"
_STARTS = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0"}  # of frames that zeros may follow
_TEXT = 64  # bytes of text that are no ids
_CONTROL = re.compile(r"[^\t\n\f\r\x20-\U0010ffff]")


def lines(file: str, key: str) -> Iterator[bytes]:
    """Every line in order, with its end.

    Args:
        file: path or URI; its ending says how it is compressed.
        key: configuration key named in errors.

    Raises:
        UserError: the file is not what its name says; a line, or all that comes out, is larger than any text.
    """
    system, inner = filesystem(file)
    size = system.get_file_info(inner).size or 0
    most = max(FREE, RATIO * size) if packing(file) else None
    with system.open_input_stream(inner, compression=None) as stream:
        refuse_other(stream.read(HEAD), file, key)
    with system.open_input_stream(inner, compression=None) as stream:
        out = 0
        reader = io.BufferedReader(unpacked(stream, file, key), 1 << 20)
        if packing(file) and (what := contents(reader.peek(HEAD)[:HEAD])):
            raise UserError(f"holds, unpacked, {what}", file=file, key=key, remedy="unpack it")
        number = 0
        while line := reader.readline(LONGEST + 1):
            number, out = number + 1, out + len(line)
            if len(line) > LONGEST:
                raise UserError(
                    f"line {number} has more than {LONGEST >> 20} MiB", file=file, key=key,
                    remedy="write one document a line",
                )  # fmt: skip
            if most is not None and out > most:
                raise UserError(
                    f"unpacks to more than {RATIO:,} times its size", file=file, key=key,
                    remedy="if it is no damaged file, unpack it and name that",
                )  # fmt: skip
            yield line


def is_blank(line: bytes) -> bool:
    """Whether a line holds blank space at most, and byte order marks."""
    return not line.strip(b"\xef\xbb\xbf \t\r\n\f\v")


def decoded(line: bytes, number: int, file: str, key: str) -> str:
    """A line as text, without the byte order mark that a file, or one that it was put together from, begins with.

    Raises:
        UserError: it is in another encoding, or no text.
    """
    text: str | None = None
    with suppress(UnicodeDecodeError):
        text = line.decode("utf-8").lstrip("\ufeff")
    if text is not None and "\0" not in text:
        return text
    encoding = next(
        (name for start, name in _ENCODINGS.items() if number == 1 and re.match(start, line)), None
    )
    if encoding is None and text is None and not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", line):
        encoding = "CP1252" if re.search(rb"[\x80-\x9f]", line) else "LATIN1"
        if 2 * len(re.findall(rb"[\x80-\xff]", line)) > len(re.findall(rb"[A-Za-z\x80-\xff]", line)):
            encoding = _NOT_WESTERN  # more such letters than any language of the West has
    convert = f"convert it: iconv -f {encoding} -t UTF-8"
    raise UserError(
        f"line {number} " + ("is not UTF-8 text" if encoding else "holds a zero byte or the like: this is no text"),
        file=file, key=key, remedy=f"leave the file out, or {convert}" if encoding else "leave the file out",
    )  # fmt: skip


def refuse_other(head: bytes, file: str, key: str) -> None:
    """Raise a `UserError` where a file of text or lines begins otherwise than its name says."""
    ending, what = packing(file), contents(head)
    wanted = f"data compressed with {PACKED[ending]}" if ending else None
    if not head or what == wanted:
        return
    instead = next((each for each, kind in PACKED.items() if what == f"data compressed with {kind}"), None)
    if instead:
        remedy = f"end its name with {instead}"
    elif is_text(head):
        what, remedy = "text that is not compressed", f"take {ending} off its name"
    elif what:
        remedy = (
            "unpack it" if "archive" in what else "give it the ending, or set the format, of what it holds"
        )
    else:
        remedy = f"take {ending} off its name if it is not compressed, else get it again"
    raise UserError(f"cannot be read: holds {what or 'no ' + str(wanted)}", file=file, key=key, remedy=remedy)


def unpacked(stream: Any, file: str, key: str | None = None) -> Any:
    """A readable stream of what a compressed stream, at its beginning, holds; of a plain one itself."""
    kind = PACKED.get(packing(file))
    makers: dict[str | None, Callable[[], Any]] = {
        "gzip": _Gzip,
        "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(),
        "bzip2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=_WINDOW),
    }
    if kind not in makers:
        return stream
    other = UserError(
        f"cannot be read: what follows the compressed data in it is not compressed with {kind}", file=file, key=key,
        remedy="unpack it and compress it again, or get it again",
    )  # fmt: skip
    return _Frames(stream, makers[kind], _STARTS.get(str(kind), b""), other)


class _Gzip:
    """A frame of gzip, read as those of the others are."""

    def __init__(self) -> None:
        self._frame = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        """What follows it."""
        return self._frame.unused_data

    def decompress(self, data: Any) -> bytes:
        """What so much of it holds."""
        try:
            return self._frame.decompress(data)
        except zlib.error as error:
            raise OSError(str(error)) from None


class _Frames(io.RawIOBase):
    """Compressed frames one after the other, until nothing is left: one that is cut off, or anything else, is noticed.

    zstd is unpacked with windows longer than Arrow takes. The others may be filled up with zeros.

    Args:
        stream: compressed.
        make: what unpacks a frame.
        start: what a frame begins with, where it may be filled up.
        other: raised where something else follows a frame.
    """

    def __init__(self, stream: Any, make: Callable[[], Any], start: bytes, other: UserError) -> None:
        self._stream, self._make, self._start, self._other = stream, make, start, other
        self._follows = False
        self._in, self._out = memoryview(b""), memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            if not self._in and getattr(self._frame, "needs_input", True):
                if not (part := self._stream.read(_READ)):
                    if self._frame is not None:
                        raise EOFError("the compressed data are cut off")
                    return 0
                self._in = memoryview(part)
            if self._frame is None:
                if self._start:
                    self._in = memoryview(bytes(self._in).lstrip(b"\0") if self._follows else self._in)
                    if not self._in:
                        continue
                    if self._follows and bytes(self._in[: len(self._start)]) != self._start[: len(self._in)]:
                        raise self._other
                self._frame, self._follows = self._make(), True
            self._out = memoryview(self._unpacked())
            if self._frame.eof:
                left = bytes(self._frame.unused_data)
                self._in = memoryview(left + bytes(self._in)) if left else self._in
                self._frame = None
        size = min(len(buffer), len(self._out))
        buffer[:size], self._out = self._out[:size], self._out[size:]
        return size

    def _unpacked(self) -> bytes:
        """Some of what the frame holds; of zstd so little goes in that what comes out is bounded."""
        bounded = hasattr(self._frame, "needs_input")
        step = (len(self._in) if self._frame.needs_input else 0) if bounded else _STEP
        part, self._in = self._in[:step], self._in[step:]
        return bytes(self._frame.decompress(part, _READ) if bounded else self._frame.decompress(part))


def refuse_pointer(file: InputFile, key: str) -> None:
    """Raise a `UserError` for what a clone holds in the place of a large file."""
    if not 0 < file.size <= _POINTER_BYTES:
        return
    system, inner = filesystem(file.path)
    with system.open_input_stream(inner, compression=None) as stream:
        head = stream.read(_POINTER_BYTES)
    for start, (tool, command) in _POINTERS.items():
        if re.match(start, head):
            raise UserError(
                f"is a pointer of {tool}, not the file itself",
                file=file.path,
                key=key,
                remedy=f"get it with `{command}`",
            )


@cache
def digest_of_text(file: InputFile) -> str | None:
    """A hash of what a file holds, unpacked; None where it cannot be unpacked, or only to very much."""
    system, inner = filesystem(file.path)
    digest, left = hashlib.blake2b(digest_size=16), max(FREE, RATIO * file.size)
    try:
        with system.open_input_stream(inner, compression=None) as stream:
            reader = io.BufferedReader(unpacked(stream, file.path), 1 << 20)
            while part := reader.read(1 << 20):
                digest.update(part)
                if (left := left - len(part)) < 0:
                    return None
    except (pa.ArrowException, OSError, EOFError, ValueError, zstandard.ZstdError, lzma.LZMAError):
        return None
    return digest.hexdigest()


def contents(head: bytes) -> str | None:
    """What a file begins like that is neither text nor ids: `data compressed with gzip`, `Parquet`, ..."""
    return next((what for start, what in _KNOWN if start.match(head)), None)


def is_text(head: bytes) -> bool:
    """Whether so many bytes are UTF-8, the last character perhaps cut off, with no character that no text has."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode("utf-8")
    return len(head) >= _TEXT and not _CONTROL.search(text)
