"""Lines of a file, plain or compressed, within limits: a small file may unpack to more than a machine holds.

for line in lines("web.jsonl.zst", "data.domains.web.path"):
    ...
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import zstandard

from opmix_ray.errors import UserError
from opmix_ray.sources.files import InputFile, filesystem

LONGEST = 1 << 28  # bytes of a line
FREE = 1 << 30  # bytes that any file may unpack to
RATIO = 1000  # how many times its size a file may unpack to beyond that; text gives 3 to 30
HEAD = 32  # bytes that hold the header of a zstd frame
_WINDOW, _USUAL_WINDOW = 1 << 31, 1 << 27  # what `zstd --long=31` asks for, and `zstd --long`
_POINTERS = {
    b"version https://git-lfs": "Git LFS; git lfs pull",
    b"/annex/objects/": "git-annex; git annex get",
}
_POINTER_BYTES = 1024


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
