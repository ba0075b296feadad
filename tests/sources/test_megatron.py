"""Megatron's .bin and .idx give the documents that were written; a broken pair gives one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import inspect_part
from opmix_ray.sources import megatron
from opmix_ray.sources.source import Document, iter_documents, open_source
from tests.sources.megatron_files import write_indexed
from tests.support import DEMO

EOS = 0
DOCUMENTS = [[[5, 6, 7, EOS]], [[8, 9], [10, EOS]], [[11]], [[12, EOS, 13]]]  # the second has two sequences


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast.from_pretrained(DEMO / "tokenizer")
    assert found.eos_token_id == EOS
    return found


def read(path: Path | str, tokenizer: PreTrainedTokenizerFast, **settings: object) -> list[Document]:
    return list(iter_documents(SourceConfig(path=str(path), **settings), "d", tokenizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint16"])
@pytest.mark.parametrize("named", ["prefix", "prefix.bin", "directory", "glob"])
def test_documents_of_every_type_are_found_by_every_name(
    dtype: str, named: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = write_indexed(tmp_path / "code_text_document", DOCUMENTS, dtype)
    path = {
        "prefix": str(prefix),
        "prefix.bin": f"{prefix}.bin",
        "directory": str(tmp_path),
        "glob": f"{tmp_path}/*_document.bin",
    }
    found = read(path[named], tokenizer)
    assert [document.ids.tolist() for document in found if document.ids is not None] == [
        [5, 6, 7],
        [8, 9, 10],
        [11],
        [12, EOS, 13],
    ]
    assert [document.complete for document in found] == [True, True, True, False]


def test_a_bin_without_an_index_is_a_raw_stream(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    np.array([5, 6, EOS, 7, EOS], "<u2").tofile(tmp_path / "raw.bin")
    assert [d.ids.tolist() for d in read(tmp_path / "raw.bin", tokenizer) if d.ids is not None] == [
        [5, 6],
        [7],
    ]


def test_the_format_tokens_ignores_an_index(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prefix = write_indexed(tmp_path / "x", [[[5, EOS, 6, EOS]]])
    assert len(read(f"{prefix}.bin", tokenizer)) == 1
    assert len(read(f"{prefix}.bin", tokenizer, format="tokens")) == 2


def test_long_files_are_read_in_parts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [[[7] * length] for length in (3, 1, 9, 0, 2, 4, 1)]  # the 9 are more than one part holds
    prefix = write_indexed(tmp_path / "x", documents)
    monkeypatch.setattr(megatron, "_TOKENS", 4)
    assert [len(ids) for ids in megatron.documents(f"{prefix}.bin")] == [3, 1, 9, 0, 2, 4, 1]
    assert len(read(prefix, tokenizer)) == 6


def test_sequences_after_the_last_mark_are_a_document(tmp_path: Path) -> None:
    prefix = write_indexed(tmp_path / "x", [[[1, 2]], [[3]]])
    index = bytearray(Path(f"{prefix}.idx").read_bytes())
    index[-8:] = np.array([1], "<i8").tobytes()  # as if the last end_document() was forgotten
    Path(f"{prefix}.idx").write_bytes(bytes(index))
    assert [ids.tolist() for ids in megatron.documents(f"{prefix}.bin")] == [[1, 2], [3]]


def test_the_index_is_part_of_what_is_prepared(tmp_path: Path) -> None:
    prefix = write_indexed(tmp_path / "x", DOCUMENTS)
    source = open_source(SourceConfig(path=str(prefix)), "data.domains.d")
    assert [Path(file.path).name for file in source.files] == ["x.bin"]
    assert [Path(file.path).name for file in source.companions] == ["x.idx"]


def cut(prefix: Path) -> None:
    data = Path(f"{prefix}.idx").read_bytes()
    Path(f"{prefix}.idx").write_bytes(data[:-8])


def other(prefix: Path) -> None:
    Path(f"{prefix}.idx").write_bytes(b"not an index" * 9)


def legacy(prefix: Path) -> None:
    Path(f"{prefix}.idx").write_bytes(b"TNTIDX\x00\x00" + bytes(60))


def floats(prefix: Path) -> None:
    data = bytearray(Path(f"{prefix}.idx").read_bytes())
    data[17] = 7
    Path(f"{prefix}.idx").write_bytes(bytes(data))


def short(prefix: Path) -> None:
    data = Path(f"{prefix}.bin").read_bytes()
    Path(f"{prefix}.bin").write_bytes(data[:-2])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "its index is cut off"),
        (other, "is not a Megatron index"),
        (legacy, "--dataset-impl mmap"),
        (floats, "type 7"),
        (short, "holds 22 bytes where its index names 24"),
    ],
)
def test_a_broken_pair_is_one_line(
    harm: Callable[[Path], None], words: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    prefix = write_indexed(tmp_path / "x", DOCUMENTS)
    harm(prefix)
    with pytest.raises(UserError) as caught:
        read(prefix, tokenizer)
    assert words in str(caught.value)
    assert "x.bin: data.domains.d.path" in str(caught.value)


def test_the_format_megatron_needs_an_index(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    np.array([5, 6], "<u2").tofile(tmp_path / "raw.bin")
    with pytest.raises(UserError, match="has no index beside it"):
        read(tmp_path / "raw.bin", tokenizer, format="megatron")


def test_a_pair_that_lacks_one_of_its_files_is_named(tmp_path: Path) -> None:
    """Neither are the documents of the other pairs all there are, nor is a stream read as if it had never had ends."""
    for name in ("x", "y"):
        write_indexed(tmp_path / name, DOCUMENTS)
    (tmp_path / "y.bin").rename(tmp_path / "away")
    for path in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/y.idx"):
        with pytest.raises(
            UserError, match=r"y\.idx: data\.domains\.d\.path: is an index without the \.bin file"
        ):
            open_source(SourceConfig(path=path), "data.domains.d")
    with pytest.raises(UserError, match=r"y\.idx: --data: is an index without the \.bin file"):
        discover([str(tmp_path)])
    (tmp_path / "away").rename(tmp_path / "y.bin")
    (tmp_path / "y.idx").unlink()
    with pytest.raises(
        UserError, match=r"y\.bin: data\.domains\.d\.path: has no index beside it, as others here"
    ):
        open_source(SourceConfig(path=str(tmp_path)), "data.domains.d")


def test_an_index_names_its_pair_also_in_capitals(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_indexed(tmp_path / "x", DOCUMENTS)
    found = [
        document.ids.tolist() for document in read(tmp_path / "x", tokenizer) if document.ids is not None
    ]
    for name in ("x.idx", "Y.BIN"):
        if name == "Y.BIN":
            (tmp_path / "x.bin").rename(tmp_path / "Y.BIN")
            (tmp_path / "x.idx").rename(tmp_path / "Y.IDX")
        again = read(tmp_path / name, tokenizer)
        assert [document.ids.tolist() for document in again if document.ids is not None] == found


def test_validation_sees_an_index_of_another_file(tmp_path: Path) -> None:
    write_indexed(tmp_path / "x", DOCUMENTS)
    short(tmp_path / "x")
    with pytest.raises(UserError, match="holds 22 bytes where its index names 24"):
        inspect_part(discover([str(tmp_path / "x.bin")])[0])
    (tmp_path / "x.idx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"x\.idx: data\.domains\.d\.path: is a pointer of Git LFS"):
        open_source(SourceConfig(path=str(tmp_path / "x.bin")), "data.domains.d")
