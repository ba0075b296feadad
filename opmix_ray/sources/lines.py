"""Lines of a file, plain or compressed, within limits: a small file may unpack to more than a machine holds.

for line in lines("web.jsonl.zst", "data.domains.web.path"):
    ...
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import zstandard

from opmix_ray.errors import UserError
from opmix_ray.sources.files import InputFile, filesystem

LONGEST = 1 << 28  # bytes of a line
FREE = 1 << 30  # bytes that any file may unpack to
RATIO = 1000  # how many times its size a file may unpack to beyond that; text gives 3 to 30
_WINDOW, _USUAL_WINDOW = 1 << 31, 1 << 27  # what `zstd --long=31` asks for, and `zstd --long`
_POINTERS = {
    b"version https://git-lfs": "Git LFS; git lfs pull",
    b"/annex/objects/": "git-annex; git annex get",
}
_POINTER_BYTES = 1024
HEAD = 512  # bytes of a file that tell
_MAGIC = {
    rb"\x1f\x8b\x08": "data compressed with gzip",
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "data compressed with zstd",  # or a frame to be skipped
    rb"BZh[1-9]1AY&SY": "data compressed with bzip2",
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
_TEXT = 64  # bytes of text that are no ids
_CONTROL = re.compile(r"[^\t\n\f\r\x20-\U0010ffff]")


def lines(file: str, key: str) -> Iterator[bytes]:
    """Every line in order, with its end.

    Args:
        file: path or URI; its ending says how it is compressed.
        key: configuration key named in errors.

    Raises:
        UserError: a line, or all that comes out, is larger than any text.
    """
    system, inner = filesystem(file)
    size = system.get_file_info(inner).size or 0
    most = max(FREE, RATIO * size) if compression(file) else None
    with system.open_input_stream(inner, compression=None) as stream:
        head = stream.read(HEAD) if compression(file) == "zstd" else b""
    with system.open_input_stream(inner, compression=None) as stream:
        out = 0
        reader = io.BufferedReader(unpacked(stream, file, head), 1 << 20)
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


def unpacked(stream: Any, file: str, head: bytes) -> Any:
    """A readable stream of what a compressed stream holds; of a plain one itself.

    Args:
        stream: at its beginning.
        file: its name.
        head: its first bytes, `HEAD` or more where there are so many.
    """
    kind = compression(file)
    if kind == "zstd" and _window(head) > _USUAL_WINDOW:  # more than Arrow takes
        return _LongWindow(stream, head)
    return pa.CompressedInputStream(stream, kind) if kind else stream


def _window(head: bytes) -> int:
    try:
        return int(zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:
        return 0


class _LongWindow(io.RawIOBase):
    """One zstd frame with a long window; one that is cut off is noticed where it says how long it is."""

    def __init__(self, stream: Any, head: bytes) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
            stream, read_across_frames=True
        )
        self._left = zstandard.frame_content_size(head)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(len(buffer))
        if not part and self._left > 0:
            raise EOFError("the compressed data are cut off")
        self._left -= len(part)
        buffer[: len(part)] = part
        return len(part)


def compression(file: str) -> str | None:
    """How a file is compressed, by its ending."""
    name = file.partition("?")[0].lower()
    return "gzip" if name.endswith(".gz") else "zstd" if name.endswith((".zst", ".zstd")) else None


def refuse_pointer(file: InputFile, key: str) -> None:
    """Raise a `UserError` for what a clone holds in the place of a large file."""
    if not 0 < file.size <= _POINTER_BYTES:
        return
    system, inner = filesystem(file.path)
    with system.open_input_stream(inner, compression=None) as stream:
        head = stream.read(64)
    for start, what in _POINTERS.items():
        if head.startswith(start):
            tool, _, command = what.partition("; ")
            raise UserError(
                f"is a pointer of {tool}, not the file itself",
                file=file.path,
                key=key,
                remedy=f"get it with `{command}`",
            )


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
