"""Compressed files are read within limits; long windows are read; pointers in the place of files are named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zstandard

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.init import inspect
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import inspect_part
from opmix_ray.sources import lines as module
from opmix_ray.sources.source import iter_documents

ROWS = b"".join(json.dumps({"text": f"line {n}"}).encode() + b"\n" for n in range(2000))


def count(path: Path) -> int:
    return sum(1 for _ in iter_documents(SourceConfig(path=str(path)), "d"))


def compressed(data: bytes, window: int, *, size: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window, enable_ldm=True, write_content_size=size
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(len(data) if size else -1)
    return packer.compress(data) + packer.flush()


def test_long_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(compressed(ROWS, 30, size=False))
    assert zstandard.get_frame_parameters((tmp_path / "a.jsonl.zst").read_bytes()).window_size == 1 << 30
    assert count(tmp_path / "a.jsonl.zst") == 2000
    assert inspect_part(discover([str(tmp_path / "a.jsonl.zst")])[0]).documents == 2000


def open_frame(data: bytes, window: int) -> bytes:
    """A frame whose last block was never written, as where the disk was full: all bytes that there are unpack."""
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window, enable_ldm=True, write_content_size=False
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


SKIPPED = b"\x5e\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"whatever"


@pytest.mark.seconds
def test_frames_of_every_window_follow_each_other(tmp_path: Path) -> None:
    frames = [
        SKIPPED,
        compressed(ROWS, 20),
        compressed(ROWS, 30, size=False),
        SKIPPED,
        compressed(ROWS, 30),
        SKIPPED,
    ]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert count(tmp_path / "a.jsonl.zst") == 6000
    assert inspect_part(discover([str(tmp_path / "a.jsonl.zst")])[0]).documents == 6000


@pytest.mark.parametrize("window", [20, 30])
@pytest.mark.parametrize("cut", ["the second frame", "its end", "the last block"])
@pytest.mark.seconds
def test_a_frame_without_its_end_is_noticed(window: int, cut: str, tmp_path: Path) -> None:
    """Everything before the cut is whole lines: they are no file of fewer documents."""
    whole = compressed(ROWS, window, size=False)
    content = {
        "the second frame": whole + whole[: len(whole) // 2],
        "its end": whole[:-1],
        "the last block": open_frame(ROWS, window),
    }[cut]
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: .*the compressed data are cut off; `zstd -t`"):
        count(tmp_path / "a.jsonl.zst")


TARRED = io.BytesIO()
with tarfile.open(fileobj=TARRED, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a.jsonl"))
ZIPPED = io.BytesIO()
with zipfile.ZipFile(ZIPPED, "w") as zipped:
    zipped.writestr("a.jsonl", ROWS)
ENDINGS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_way_to_compress_is_read_in_parts_and_a_cut_is_noticed(ending: str, tmp_path: Path) -> None:
    file, half = tmp_path / f"a.jsonl{ending}", len(ROWS) // 2
    content = ENDINGS[ending](ROWS[:half]) + ENDINGS[ending](ROWS[half:])
    file.write_bytes(content)
    assert count(file) == inspect_part(discover([str(file)])[0]).documents == 2000
    file.write_bytes(content[:-9])
    with pytest.raises(UserError, match=rf"a\.jsonl\{ending}: data\.domains\.d\.path: cannot be read: "):
        count(file)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("more", [b"not compressed\n", b"BZh9", b"\xfd7zXZ\0damaged", ROWS])
def test_what_follows_the_compressed_data_is_not_left_out(ending: str, more: bytes, tmp_path: Path) -> None:
    """As where files were put together of which one is damaged, or was not compressed."""
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(ENDINGS[ending](ROWS) + more)
    with pytest.raises(UserError, match=rf"a\.jsonl\{ending}: data\.domains\.d\.path: cannot be read: "):
        count(file)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_zeros_may_fill_up_a_file(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(ENDINGS[ending](ROWS) + bytes(1024) + ENDINGS[ending](ROWS) + bytes(512))
    assert count(file) == inspect_part(discover([str(file)])[0]).documents == 4000


@pytest.mark.parametrize("ending", [".gz", ".bz2"])
@pytest.mark.parametrize("more", [b"not compressed\n", bytes(700) + b"not compressed\n", ROWS])
def test_the_remedy_for_what_follows_is_true(ending: str, more: bytes, tmp_path: Path) -> None:
    """`bzip2 -t` finds such a file whole, and `gzip -d` unpacks it."""
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(ENDINGS[ending](ROWS) + more)
    for read in (lambda: count(file), lambda: inspect_part(discover([str(file)])[0])):
        with pytest.raises(
            UserError, match=r"what follows the compressed data in it is not .*; unpack it and"
        ):
            read()


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
@pytest.mark.seconds
def test_little_is_unpacked_at_once(ending: str) -> None:
    packed = ENDINGS[ending](bytes(1 << 28))
    stream = io.BufferedReader(module.unpacked(io.BytesIO(packed), f"a.jsonl{ending}"))
    tracemalloc.start()
    found = sum(len(part) for part in iter(lambda: stream.read(1 << 16), b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found, peak < 1 << 27) == (1 << 28, True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", gzip.compress(ROWS, mtime=0), "holds data compressed with gzip; end its name with .gz"),
        ("a.csv", zstandard.compress(ROWS), "holds data compressed with zstd; end its name with .zst"),
        ("a.txt", lzma.compress(ROWS), "holds data compressed with xz; end its name with .xz"),
        ("a.json.gz", bz2.compress(ROWS), "holds data compressed with bzip2; end its name with .bz2"),
        ("a.jsonl.gz", ROWS, "holds text that is not compressed; take .gz off its name"),
        ("a.txt.zst", ROWS, "holds text that is not compressed; take .zst off its name"),
        ("a.jsonl.gz", ZIPPED.getvalue(), "holds a zip archive; unpack it"),
        ("a.jsonl", ZIPPED.getvalue(), "holds a zip archive; unpack it"),
        ("a.txt.gz", gzip.compress(TARRED.getvalue(), mtime=0), "holds, unpacked, a tar archive; unpack it"),
        (
            "a.jsonl.xz",
            lzma.compress(gzip.compress(ROWS, mtime=0)),
            "holds, unpacked, data compressed with gzip; unpack it",
        ),
        ("a.jsonl", b"PAR1" + bytes(100), "holds Parquet; give it the ending"),
        ("a.jsonl.xz", lzma.compress(ROWS, lzma.FORMAT_ALONE), "holds data compressed with lzma"),
        ("a.jsonl", b"\x1f\x9d\x90" + bytes(100), "holds data compressed with compress"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: data.domains.d.path: .*{said}"):
        count(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: --data: "):
        inspect_part(discover([str(tmp_path / name)])[0])


@pytest.mark.seconds
def test_compressed_files_beside_others_are_read_too(tmp_path: Path) -> None:
    for number, ending in enumerate([*ENDINGS, ".zstd"]):
        (tmp_path / f"{number}.ndjson{ending}").write_bytes(ENDINGS.get(ending, zstandard.compress)(ROWS))
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    assert count(tmp_path) == 12_000


@pytest.mark.parametrize("window", [20, 30])
def test_what_is_cut_off_is_an_error(window: int, tmp_path: Path) -> None:
    whole = compressed(ROWS, window, size=window == 20)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: data\.domains\.d"):
        count(tmp_path / "a.jsonl.zst")


@pytest.mark.seconds
def test_a_small_file_that_unpacks_to_very_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE", 1 << 20)
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zstandard.compress(b'{"text": "a"}\n' * 3_000_000))
    with pytest.raises(UserError, match="unpacks to more than 1,000 times its size"):
        count(file)
    monkeypatch.setattr(inspect, "UNPACKED", 1 << 20)
    assert len(inspect.sample(discover([str(file)])[0].files[0]).rows) == inspect.ROWS


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(ROWS + b'{"text": "' + b"a" * (1 << 20) + b'"}\n')
    with pytest.raises(UserError, match="line 2001 has more than 1 MiB; write one document a line"):
        count(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow", "a.npy", "a.jsonl.zst", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("version https://hawser.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s9--0.jsonl\n", "git annex get"),
        ("../.git/annex/objects/pX/ZJ/SHA256E-s9--0.jsonl/SHA256E-s9--0.jsonl", "git annex get"),
    ],
)
def test_a_pointer_is_named(name: str, content: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"is a pointer of Git.*{remedy}|is a pointer of git-annex.*{remedy}"):
        count(tmp_path / name)
    if name.endswith((".jsonl", ".parquet")):
        with pytest.raises(UserError, match="is a pointer of"):
            inspect_part(discover([str(tmp_path / name)])[0])
