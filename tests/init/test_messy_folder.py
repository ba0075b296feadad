"""Folders as beginners keep them: copies, packed texts, other alphabets, what an installer left."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from opmix_ray.errors import UserError, UserErrors
from opmix_ray.init.begin import look_at
from opmix_ray.init.discover import discover, ignored


def text(word: str, lines: int = 4000) -> str:
    return "".join(f"{word} number {i} is about {i * 7 % 113} and {i * 13 % 97}.\n" for i in range(lines))


def names(root: Path) -> tuple[list[str], str]:
    said: list[str] = []
    return [domain.name for domain in look_at([str(root)], said.append)], "\n".join(said)


def test_a_copy_of_a_file_is_no_domain(tmp_path: Path) -> None:
    for name, word in (("code copy.txt", "code"), ("code.txt", "code"), ("web.txt", "webs")):
        (tmp_path / name).write_text(text(word))
    found, said = names(tmp_path)
    assert found == ["code", "web"]  # and webs, of the same size, is none
    assert f"left out: {tmp_path}/code copy.txt: --data: is a copy of {tmp_path}/code.txt" in said
    found = [domain.name for domain in look_at([f"file://{tmp_path}"], [].append)]
    assert found == ["code", "web"]
    (tmp_path / "web.txt").unlink()
    with pytest.raises(UserErrors, match="is a copy of"):
        look_at([str(tmp_path)], lambda said: None)


def test_packed_texts_are_called_by_what_they_are(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text(name).encode()))
    (part,) = discover([str(tmp_path)])
    assert (part.name, part.paths) == ("txt", [f"{tmp_path}/*.txt.gz"])


def test_what_an_installer_left_is_ignored(tmp_path: Path) -> None:
    for name in ("src/a.py", "node_modules/left/index.js", "docs/a.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text(name))
    parts = discover([str(tmp_path)])
    assert [part.name for part in parts] == ["docs", "src"]
    assert f"{tmp_path}/node_modules" in ignored([str(tmp_path)], parts)


@pytest.mark.parametrize(
    ("encoding", "line", "remedy"),
    [
        ("cp1251", "Привет, это строка о погоде и книгах", "iconv -f ENCODING (WINDOWS-1251 for Cyrillic"),
        ("gb18030", "今天天气很好，我们去公园玩了", "GB18030 for Chinese"),
        ("cp1252", "Der Satz ist schön und groß", "iconv -f LATIN1"),
        ("cp1252", "Der „Satz“ ist schön – und groß", "iconv -f CP1252"),
    ],
)
def test_the_remedy_for_another_encoding_does_not_spoil_the_text(
    tmp_path: Path, encoding: str, line: str, remedy: str
) -> None:
    (tmp_path / "a.txt").write_bytes(f"{line}\n".encode(encoding) * 3000)
    with pytest.raises(UserError) as caught:
        look_at([str(tmp_path)], lambda said: None)
    assert remedy in str(caught.value)
