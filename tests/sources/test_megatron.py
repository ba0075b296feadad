"""Megatron's .bin and .idx give the documents that were written; a broken pair gives one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
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
