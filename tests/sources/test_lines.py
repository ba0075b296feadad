"""Compressed files are read within limits; long windows are read; pointers in the place of files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.init import rows
from opmix_ray.init.discover import discover
from opmix_ray.init.look import look
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
    assert look(discover([str(tmp_path / "a.jsonl.zst")])[0]).documents == 2000


@pytest.mark.parametrize("window", [20, 30])
def test_what_is_cut_off_is_an_error(window: int, tmp_path: Path) -> None:
    whole = compressed(ROWS, window, size=window == 20)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: data\.domains\.d"):
        count(tmp_path / "a.jsonl.zst")


def test_a_small_file_that_unpacks_to_very_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE", 1 << 20)
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zstandard.compress(b'{"text": "a"}\n' * 3_000_000))
    with pytest.raises(UserError, match="unpacks to more than 1,000 times its size"):
        count(file)
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    assert len(rows.sample(discover([str(file)])[0].files[0]).rows) == rows.ROWS


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
        ("/annex/objects/SHA256E-s9--0.jsonl\n", "git annex get"),
    ],
)
def test_a_pointer_is_named(name: str, content: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"is a pointer of Git.*{remedy}|is a pointer of git-annex.*{remedy}"):
        count(tmp_path / name)
    if name.endswith((".jsonl", ".parquet")):
        with pytest.raises(UserError, match="is a pointer of"):
            look(discover([str(tmp_path / name)])[0])
