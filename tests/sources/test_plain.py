"""Text, tables and JSON as people have them: documents of a size, values where they lie, errors with file and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.init.inspect import sample
from opmix_ray.sources.plain import PIECE
from opmix_ray.sources.source import iter_documents


def texts(path: Path | str, **settings: Any) -> list[str | None]:
    return [document.text for document in iter_documents(SourceConfig(path=str(path), **settings), "d")]


def test_a_short_text_file_is_one_document_and_a_long_one_is_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "short.md").write_text("# One\n\ntwo\n", encoding="utf-8")
    assert texts(tmp_path / "short.md") == ["# One\n\ntwo"]
    paragraphs = [f"paragraph {number} " + "word " * 100 for number in range(60)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found = texts(tmp_path / "book.txt")
    assert len(found) > 5
    assert "\n\n".join(str(text) for text in found) == "\n\n".join(paragraphs)
    assert all(len(str(text)) >= PIECE for text in found[:-1])


@pytest.mark.parametrize("text", ["x" * 100_000, "line\n" * 20_000])
def test_text_without_a_blank_line_is_cut_all_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = texts(tmp_path / "a.txt.gz")
    assert max(len(str(part)) for part in found) <= 4 * PIECE + 5
    assert "".join(str(part) for part in found).replace("\n", "") == text.replace("\n", "")


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_tables(tmp_path: Path, mark: str) -> None:
    rows = [["id", "text"], ["1", f'"a{mark} b\nand ""c"""'], ["2", "d"], ["3", ""]]
    (tmp_path / "t.csv").write_text("".join(mark.join(row) + "\n" for row in rows))
    assert texts(tmp_path / "t.csv") == [f'a{mark} b\nand "c"', "d"]


def test_empty_columns_at_the_end_as_spreadsheets_write_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text,,\n1,a,,\n2,b,,\n")
    assert texts(tmp_path / "t.csv") == ["a", "b"]


def test_a_first_line_that_names_the_mark(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\ntext, and more;n\r\na;1\r\nb;2\r\n")
    assert texts(tmp_path / "t.csv", text_column="text, and more") == ["a", "b"]


def test_an_array_in_a_compressed_file_is_read_where_the_format_says_so(tmp_path: Path) -> None:
    for indent in (None, 1):
        rows = [{"text": "a"}, {"text": "b"}]
        (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=indent).encode()))
        with pytest.raises(UserError, match="set the format to json"):
            texts(tmp_path / "a.json.gz")
        assert texts(tmp_path / "a.json.gz", format="json") == ["a", "b"]


def test_a_name_of_a_column_may_hold_the_mark_of_others(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"text, whole, as it is";n\n"a";1,5\n"b";2,5\n')
    assert texts(tmp_path / "t.csv", text_column="text, whole, as it is") == ["a", "b"]
    domain = sample(discover([str(tmp_path / "t.csv")])[0].files[0])
    assert domain.rows[0] == {"text, whole, as it is": "a", "n": "1,5"}


def test_a_table_with_what_programs_put_around_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf\r\n\r\ntext,n,\r\na,1,\r\nb,2\r\nc,3,,,\r\n")
    assert texts(tmp_path / "t.csv") == ["a", "b", "c"]


def test_marks_and_line_ends_of_every_kind(tmp_path: Path) -> None:
    row, mark = b'{"text": "a\\u2028b\xe2\x80\xa8c"}', b"\xef\xbb\xbf"
    for name, content in (
        ("put together", mark + row + b"\n" + mark + row),
        ("ends", mark + b"\r\n" + row + b"\r\n\f\n" + row),
    ):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
        assert texts(tmp_path / f"{name}.jsonl") == ["a\u2028b\u2028c"] * 2
        assert sample(discover([str(tmp_path / f"{name}.jsonl")])[0].files[0]).total == 2
    paragraphs = [f"paragraph {number} " + "word " * 100 for number in range(60)]
    found = {}
    for name, end in (("mac", "\r"), ("unix", "\n")):
        (tmp_path / f"{name}.txt").write_bytes((end * 2).join(paragraphs).encode())
        found[name] = [str(text).strip() for text in texts(tmp_path / f"{name}.txt")]
    assert [text.replace("\r", "\n") for text in found["mac"]] == found["unix"]


@pytest.mark.parametrize("between", ["", "\n", " \n\n"])
def test_arrays_one_after_the_other_are_read_to_the_end(between: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        f'[{{"text": null}}, {{"text": "a"}}]{between}[{{"text": "b"}}]{between}'
    )
    assert texts(tmp_path / "a.json") == ["a", "b"]
    (tmp_path / "a.json").write_text('[{"text": "a"}]{"text": "b"}')
    assert texts(tmp_path / "a.json") == ["a", "b"]


@pytest.mark.parametrize("layout", ["array", "indented", "lines", "one after the other"])
def test_json_as_it_comes(tmp_path: Path, layout: str) -> None:
    rows = [{"text": f"text {number} é [1, 2] " + "long " * 1000} for number in range(700)]
    written = {
        "array": json.dumps(rows),
        "indented": json.dumps(rows, indent=2, ensure_ascii=False),
        "lines": "\n".join(map(json.dumps, rows)),
        "one after the other": "".join(json.dumps(row, indent=1) for row in rows),
    }[layout]
    (tmp_path / "a.json").write_text("\ufeff" + written, encoding="utf-8")
    assert texts(tmp_path / "a.json") == [row["text"] for row in rows]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "json"])
def test_a_column_inside_an_object(tmp_path: Path, ending: str) -> None:
    rows = [{"doc": {"text": "a", "n": 1}}, {"doc": None}, {"doc": {"text": "b", "n": 2}}]
    file = tmp_path / f"a.{ending}"
    table = pa.Table.from_pylist(rows)
    if ending == "parquet":
        pq.write_table(table, file)
    elif ending == "arrow":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    assert texts(file, text_column="doc.text") == ["a", "b"]
    with pytest.raises(
        UserError, match=r"no column 'text'; set text_column: doc.text; it has: doc.text, doc.n"
    ):
        texts(file)
    with pytest.raises(UserError, match=r"no column 'doc.body'"):
        texts(file, text_column="doc.body")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.txt",
            b"caf\xe9\n",
            "line 1 is not UTF-8 text; leave the file out, or convert it: iconv -f LATIN1",
        ),
        ("a.txt", "été\n".encode("utf-16"), "iconv -f UTF-16"),
        ("a.py", b"x\0y", "line 1 holds a zero byte"),
        ("a.csv", b"a,a\n1,2\n", "names a column twice"),
        ("a.csv", b"text,n\nhe said, that,2\n", "line 2 has 3 cells, the first line 2"),
        ("a.csv", b"a,b\n1,2\n", "has no column 'text'"),
        (
            "a.csv",
            b'text,n\n"a,1\nb,2\nc,3\n',
            "line 2 is not CSV: a cell that begins after line 1 has no closing quote",
        ),
        ("a.csv", b'text,n\na,1\n"he said \\"hi\\"",1\n', "line 3 is not CSV"),
        ("a.tsv", b'text\tn\n"hello" she said\t1\n', "line 2 is not CSV"),
        ("a.tsv", b'text\tn\n"one\t1\n"two\t2\n', "line 2 is not CSV"),
        ("a.csv", b"text,n\nfirst half\nsecond half,1\n", "line 2 has 1 cells, the first line 2"),
        ("a.csv", b"text,n\ra,1\rb,2\r", "its lines do not end with a line feed"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "end lines with a line feed"),
        ("a.json", b'[{"text": "a"}] and more', "object 2 is not JSON"),
        ("a.json", b'[{"text": "a", "text": "b"}]', "the key 'text' stands in it twice"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "a", "n": {"text": 1}, "text": "b"}',
            "line 2 is not JSON: the key 'text'",
        ),
        ("a.jsonl", b'[{"text": "a"}]', "or end its name with .json"),
        ("a.jsonl", b'{\n"text": "a"\n}', "or end its name with .json"),
        ("a.jsonl", '{"text": "\u00e9"}\n'.encode("utf-16"), "iconv -f UTF-16 "),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("a.csv", "text\na\n".encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("a.txt", "a text".encode("utf-32"), "iconv -f UTF-32"),
        ("a.txt", b"\x93quoted\x94", "iconv -f CP1252"),
        ("a.md", bytes(range(1, 255)), "this is no text"),
        ("a.jsonl", b'{"text": "a"}\n' + bytes(512), "line 2 holds a zero byte"),
        ("a.json", b'[{"text": "a"}, {"text": ]', "object 2 is not JSON"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}', "ends inside its array"),
        ("a.json", b'["a", "b"]', "entry 1 is JSON but not an object"),
        ("a.txt", b"\n\n", "holds no document"),
        ("a.json", b"[]", "holds no document"),
    ],
)
def test_what_is_broken_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as told:
        texts(tmp_path / name)
    assert words in str(told.value)
    assert str(tmp_path / name) in str(told.value)


def test_notes_beside_data_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_info.json").write_text('{"text": "no"}')
    assert texts(tmp_path) == ["text"]
    (tmp_path / "b.jsonl").write_text('{"text": "data"}\n')
    assert texts(tmp_path) == ["data"]
    assert texts(tmp_path / "*.txt") == ["text"]
    with pytest.raises(
        UserError, match=r"README.md: data.domains.d.path: is text among files with rows; name"
    ):
        texts(tmp_path / "*.??*")


def test_of_plain_files_the_kind_that_most_have_is_read(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("code")
    (tmp_path / "tsconfig.json").write_text("{}")
    assert texts(tmp_path) == ["code", "code"]
