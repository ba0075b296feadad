"""Every format gives the same documents; every broken file gives one line that says what to do."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import inspect_part, sample
from opmix_ray.sources import megatron, readers
from opmix_ray.sources.source import Document, iter_documents, open_source, validate_sources
from tests.object_store import object_store

TEXTS = ["one", "zwei äöü", "three\nlines\n", "", "🙂 emoji", "x" * 5000]
PRESENT = [text for text in TEXTS if text]


def json_lines(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


def write_jsonl(path: Path) -> None:
    path.write_bytes(json_lines(TEXTS))


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(json_lines(TEXTS)))


def write_zstandard(path: Path) -> None:
    path.write_bytes(zstandard.compress(json_lines(TEXTS)))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"other": range(len(TEXTS)), "text": TEXTS}), path, row_group_size=2)


def write_arrow_file(path: Path) -> None:
    table = pa.table({"text": pa.array(TEXTS, pa.large_string())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(path: Path) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode()})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_data_set(path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(path, num_shards=2)


FORMATS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gzip,
    "a.jsonl.zst": write_zstandard,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_file,
    "b.arrow": write_arrow_stream,
    "saved": write_data_set,
}


def texts_of(path: str | list[str], **options: Any) -> list[str | None]:
    return [document.text for document in iter_documents(SourceConfig(path=path, **options), "d")]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    assert texts_of(str(tmp_path / name)) == PRESENT


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_uri_is_a_path(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    assert texts_of((tmp_path / name).as_uri()) == PRESENT


def test_a_named_format_overrides_the_file_ending(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.txt")
    assert texts_of(str(tmp_path / "data.txt"), format="jsonl") == PRESENT


def test_globs_directories_and_lists_give_files_in_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(json_lines([name]))
    (tmp_path / "notes.md").write_text("not data")
    assert texts_of(str(tmp_path / "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert texts_of(str(tmp_path / "**" / "*.jsonl")) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert texts_of(str(tmp_path)) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    both = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")]
    assert texts_of(both) == ["b.jsonl", "a.jsonl"], "a file named twice is read once"


def test_text_in_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["here"], column="content"))
    assert texts_of(str(tmp_path / "a.jsonl"), text_column="content") == ["here"]


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=20))
@pytest.mark.seconds
def test_any_text_survives_every_format(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("any")
    (directory / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(texts)))
    pq.write_table(pa.table({"text": texts}), directory / "a.parquet")
    assert texts_of(str(directory / "a.jsonl.gz")) == texts
    assert texts_of(str(directory / "a.parquet")) == texts


def test_the_digest_depends_on_the_content_alone() -> None:
    assert Document(text="a").digest() == Document(text="a").digest()
    same = {
        Document(text="a").digest(),
        Document(text=" A.\n").digest(),
        Document(prompt="", completion="a").digest(),
        Document(messages=[{"role": "user", "content": "a"}]).digest(),
    }
    assert len(same) == 1, "whatever the shape"
    different = {
        Document(text="a").digest(),
        Document(text="b").digest(),
        Document(text=".").digest(),
        Document(ids=np.array([97])).digest(),
        Document(ids=np.array([97, 0])).digest(),
    }
    assert len(different) == 5
    assert Document(ids=np.array([5, 6], np.uint16)).digest() == Document(ids=np.array([5, 6])).digest()


# ---- tokens ----

STREAM = [5, 6, 7, 0, 8, 0, 0, 9, 10]
SPLIT = [[5, 6, 7], [8], [9, 10]]


def ids_of(path: Path, **options: Any) -> list[list[int]]:
    class Ends:
        eos_token_id = 0

    documents = iter_documents(SourceConfig(path=str(path), **options), "d", Ends())
    return [document.ids.tolist() for document in documents if document.ids is not None]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_raw_token_streams_are_split_at_the_end_of_text(dtype: str, tmp_path: Path) -> None:
    np.array(STREAM, dtype).tofile(tmp_path / "a.bin")
    assert ids_of(tmp_path / "a.bin", token_dtype=dtype) == SPLIT
    np.save(tmp_path / "a.npy", np.array(STREAM, dtype))
    assert ids_of(tmp_path / "a.npy") == SPLIT, "a .npy file says its own type"
    np.array(STREAM, dtype).tofile(tmp_path / "b.npy")
    assert ids_of(tmp_path / "b.npy", token_dtype=dtype) == SPLIT, "also raw ids under the name .npy"


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16())])
def test_columns_of_token_ids(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"input_ids": pa.array([[5, 6, 7, 0], [], None, [8]], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert ids_of(tmp_path / name, tokens_column="input_ids") == [[5, 6, 7], [8]]


def test_null_rows_among_lists_of_one_length(tmp_path: Path) -> None:
    table = pa.table({"ids": pa.array([None, [5, 6], [7, 8], None, [9, 10]], pa.list_(pa.int32(), 2))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table.slice(1))
    for name in ("a.parquet", "a.arrow"):
        assert ids_of(tmp_path / name, tokens_column="ids") == [[5, 6], [7, 8], [9, 10]]
    domain = inspect_part(discover([str(tmp_path / "a.parquet")])[0])
    assert (domain.columns, domain.documents, domain.size) == ({"tokens_column": "ids"}, 3, 6)


@pytest.mark.parametrize(
    "value", ["[1, true]", "[1, 2.0]", "[[1], [2, 3]]", '"1 2"', "[1, null]", '{"0": 1}']
)
def test_what_is_no_list_of_ids_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"ids": [1, 2]}}\n{{"ids": {value}}}\n')
    assert "line 2 is not a list of integers" in problem(tmp_path / "a.jsonl", tokens_column="ids")


def test_a_row_of_several_documents_is_left_as_it_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [[5, 0, 6, 0], [0, 7], [8, 9], [4, 0]]}), tmp_path / "a.parquet")

    class Ends:
        eos_token_id = 0

    source = SourceConfig(path=str(tmp_path / "a.parquet"), tokens_column="input_ids")
    found = [(document.ids.tolist(), document.complete) for document in iter_documents(source, "d", Ends())]
    assert found == [([5, 0, 6, 0], False), ([0, 7], False), ([8, 9], True), ([4], True)]


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=60), part=st.integers(1, 9), block=st.integers(1, 9)
)
@pytest.mark.seconds
def test_a_stream_is_split_the_same_however_it_is_read(
    ids: list[int], part: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("stream") / "a.bin"
    np.array(ids, np.uint16).tofile(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron, "_TOKENS", part)
        found = [(d.tolist(), c) for d, c in megatron.token_stream(str(file), np.dtype("<u2"), 0, block)]
    if 0 in ids:
        joined = [token for document, _ in found for token in [*document, 0]]
        assert joined[:-1] == ids
        assert all(complete for _, complete in found)
    else:
        assert [token for document, _ in found for token in document] == ids
        assert all(len(document) == block for document, _ in found[:-1])


# ---- what can be wrong ----


def problem(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_documents(SourceConfig(path=str(path), **options), "d"))
    line = str(caught.value)
    assert "\n" not in line
    assert "data.domains.d" in line
    return line


GOOD = json_lines(["good text"] * 300)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", "holds no document"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "holds no document"),
        ("a.jsonl", bytes(range(128, 256)), "line 1 is not UTF-8 text"),
        ("a.jsonl", b"plain words\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is JSON but not an object"),
        ("a.jsonl", b'{"text": 5}\n', "line 1 holds int, not text"),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-40], "cannot be read"),
        ("a.jsonl.gz", GOOD, "cannot be read"),
        ("a.jsonl.zst", GOOD, "cannot be read"),
        ("a.parquet", GOOD, "cannot be read"),
        ("a.arrow", GOOD, "cannot be read"),
        ("a.npy", b"\x93NUMPY", "cannot be read"),
        ("a.bin", b"123", "not a multiple of 2 bytes"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    line = problem(tmp_path / name)
    assert expected in line
    assert str(tmp_path / name) in line


def test_a_page_that_its_checksum_contradicts_is_refused(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(100)]
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **options)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"text number 50", b"next number 50", 1))
    assert "cannot be read: could not verify page integrity" in problem(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="could not verify page integrity"):
        inspect_part(discover([str(tmp_path / "a.parquet")])[0])


def test_a_stream_is_read_to_its_end_or_refused(tmp_path: Path) -> None:
    write_arrow_stream(tmp_path / "a.arrow")
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole + whole)
    assert "holds more than one stream" in problem(tmp_path / "a.arrow")
    (tmp_path / "a.arrow").write_bytes(whole[:-8])  # as where the writer died between two batches
    assert "the stream has no end" in problem(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.parquet", write_arrow_file, "holds Arrow, not Parquet"),
        ("a.parquet", write_jsonl, "holds text, not Parquet"),
        ("a.arrow", write_parquet, "holds Parquet, not Arrow"),
        ("a.arrow", write_gzip, "holds data compressed with gzip, not Arrow"),
        ("a.jsonl", write_parquet, "holds Parquet; give it the ending"),
    ],
)
def test_a_table_under_the_name_of_another_kind(
    name: str, write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert said in problem(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: --data: .*{said}"):
        inspect_part(discover([str(tmp_path / name)])[0])


def test_text_of_the_json_type_is_text(tmp_path: Path) -> None:
    kind = pa.json_(pa.string())
    pq.write_table(
        pa.table({"text": pa.array(['"a \\"b\\""', None, '"c"']).cast(kind)}), tmp_path / "a.parquet"
    )
    assert texts_of(str(tmp_path / "a.parquet")) == ['a "b"', "c"]
    pq.write_table(pa.table({"text": pa.array(['{"a": 1}']).cast(kind)}), tmp_path / "b.parquet")
    assert "row 1 holds dict, not text" in problem(tmp_path / "b.parquet")


@pytest.mark.seconds
def test_a_small_table_that_holds_very_much_is_refused(tmp_path: Path) -> None:
    """A text of 1 MiB that stands in 20,000 rows: some hundred bytes, and 20 GB."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["a" * (1 << 20)]))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert len(sample(discover([str(tmp_path / "a.parquet")])[0].files[0]).rows) < 200
    source = SourceConfig(path=str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="unpacks to more than 1,000 times its size"):
        for _ in iter_documents(source, "d"):
            pass


@pytest.mark.seconds
def test_rows_of_a_table_are_read_as_many_as_fit(tmp_path: Path) -> None:
    many = {"text": [f"{n} " * 200 for n in range(5000)], "kind": ["a"] * 5000}
    pq.write_table(pa.table(many), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a" * (1 << 20)] * 60}), tmp_path / "b.parquet")
    counts = [
        readers.rows_at_once(pq.ParquetFile(tmp_path / name), ["text"]) for name in ("a.parquet", "b.parquet")
    ]
    assert counts == [1024, 63]


def test_a_column_that_stands_in_a_file_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["n", "text", "text"])
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert "text_column = text: stands in the file twice" in problem(tmp_path / "a.arrow")


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_arrow_file])
def test_a_missing_column_is_answered_with_those_there_are(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / {write_jsonl: "a.jsonl", write_parquet: "a.parquet"}.get(write, "a.arrow")
    write(path)
    line = problem(path, text_column="txt")
    assert "no column 'txt'" in line
    assert "text" in line.split("it has:")[1]
    assert "data.domains.d.text_column" in line


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no file matches" in problem(tmp_path / "none" / "a.jsonl")
    assert "no file matches" in problem(str(tmp_path / "*.jsonl"))
    (tmp_path / "a.xyz").write_text("x")
    assert "set data.domains.d.format to one of jsonl, json, csv, text" in problem(tmp_path / "a.xyz")


def test_a_data_set_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "saved")
    line = problem(tmp_path / "saved")
    assert "several splits: train, test" in line
    assert texts_of(str(tmp_path / "saved" / "test")) == ["a"]


def test_columns_that_contradict_each_other(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    assert "need each other" in problem(tmp_path / "a.jsonl", prompt_column="q")
    assert "exclude each other" in problem(tmp_path / "a.jsonl", messages_column="m", tokens_column="t")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "must hold text, not int64" in problem(tmp_path / "a.parquet")


def test_a_source_opens_without_reading_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"not json at all")
    found = open_source(SourceConfig(path=str(tmp_path / "a.jsonl")), "data.domains.d")
    assert (found.kind, found.files[0].size) == ("text", 15)


def test_validation_lists_everything_wrong_in_one_go(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "good.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "hollow.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "binary.jsonl").write_bytes(os.urandom(64) + b"\xff")
    np.array([1, 2], np.uint16).tofile(tmp_path / "good.bin")
    names = ["good.jsonl", "empty.jsonl", "hollow.jsonl.gz", "binary.jsonl", "none.jsonl", "good.bin"]
    domains: dict[str, Any] = {
        name.split(".")[0] + str(i): {"path": str(tmp_path / name)} for i, name in enumerate(names)
    }
    domains["column"] = {"path": str(tmp_path / "good.jsonl"), "text_column": "body"}
    sets = {"column": {"path": str(tmp_path / "good.jsonl")}, "lost": {"path": str(tmp_path / "lost.jsonl")}}
    lines = [str(error) for error in validate_sources(make_config(sets=sets, **domains))]
    for line, expected in zip(
        lines,
        ["evaluation.sets.column", "empty1", "hollow2", "binary3", "none4", "domains.column", "sets.lost"],
        strict=True,
    ):
        assert expected in line


# ---- an object store ----


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A real S3 server; gives the URI of a key in its bucket."""
    monkeypatch.setenv("OPMIX_RAY_LOCAL_CACHE", str(tmp_path / "local"))
    with object_store(tmp_path) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        yield store.uri


@pytest.mark.slow
def test_sources_and_cache_in_an_object_store(
    bucket: Callable[[str], str],
    make_config: Callable[..., RunConfig],
    write_rows: Callable[..., str],
    tmp_path: Path,
) -> None:
    rows = [{"text": f"document {n} of the object store"} for n in range(200)]
    local = [write_rows(f"{name}.jsonl", part) for name, part in (("a", rows[:80]), ("b", rows[80:]))]
    system, _ = pafs.FileSystem.from_uri(bucket("x"))
    for path in local:
        with system.open_output_stream(f"data/in/{Path(path).name}") as stream:
            stream.write(Path(path).read_bytes())
    here = prepare(make_config(d={"path": local}))
    config = make_config(d={"path": bucket("in/*.jsonl")}, cache=bucket("cache"))
    assert validate_sources(config) == []
    there = prepare(config)
    for one, other in ((here.domains["d"].train(), there.domains["d"].train()),
                       (here.domains["d"].evaluation(), there.domains["d"].evaluation())):  # fmt: skip
        assert len(one) == len(other) > 0
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert there.domains["d"].path.startswith("s3://data/cache/domains/d-")
    calls: list[tuple[str, int, int]] = []
    again = prepare(config, on_progress=lambda *call: calls.append(call))
    assert again == there
    assert len(calls) == 1


def test_offsets_that_lead_out_of_memory_are_refused(tmp_path: Path) -> None:
    """Counting the bytes of such a batch, before it was looked through, ended the process without a word."""
    messages = pa.array([[{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]])
    offsets = np.array([0, 1 << 30, 1 << 30], np.int32)
    file = tmp_path / "data.arrow"
    with pa.ipc.new_file(str(file), pa.schema([("messages", messages.type)])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([messages], ["messages"]))
    whole = file.read_bytes()
    good, bad = np.array([0, 1, 2], np.int32).tobytes(), offsets.tobytes()
    assert whole.count(good) >= 1
    file.write_bytes(whole.replace(good, bad))
    with pytest.raises(UserError, match=r"data\.arrow"):
        list(iter_documents(SourceConfig(path=str(file), messages_column="messages"), "d"))
