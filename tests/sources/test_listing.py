"""A file is itself, whatever its name: links, loops, hidden folders and URIs."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import zstandard

from opmix_ray.config import RunConfig, SourceConfig
from opmix_ray.data.prepare import prepare
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover, ignored
from opmix_ray.sources.listing import _fits, expand, identity, listing
from opmix_ray.sources.source import iter_documents, open_source, validate_sources
from opmix_ray.storage import Storage

KEY = "data.domains.d.path"


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"text": name}) + "\n")
    return root


def names(path: object) -> list[str]:
    """The texts that a source holds: each file of `lay` holds its own name."""
    return [str(d.text) for d in iter_documents(SourceConfig(path=str(path)), "d")]


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/**"])
def test_a_loop_of_links_reads_every_file_once(pattern: str, tmp_path: Path) -> None:
    root = lay(tmp_path / "data", "a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl")
    (root / "sub" / "up").symlink_to("..")
    (root / "sub" / "self").symlink_to(".")
    (root / "out").symlink_to(tmp_path)
    (root / "one").symlink_to("sub")
    (root / "sub" / "deep" / "two").symlink_to("../../one")
    assert sorted(names(f"{root}{pattern}")) == ["a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"]


def test_a_file_under_several_names_is_read_once(tmp_path: Path) -> None:
    root = lay(tmp_path / "data", "b.jsonl", "c.jsonl")
    (root / "a.jsonl").symlink_to("b.jsonl")
    os.link(root / "b.jsonl", root / "z.jsonl")
    assert names(root) == names(f"{root}/*.jsonl") == ["b.jsonl", "c.jsonl"]
    both = SourceConfig(path=[f"{root}/a.jsonl", f"{root}/../data/b.jsonl", (root / "z.jsonl").as_uri()])
    assert len(open_source(both, "data.domains.d").files) == 1
    assert identity(f"{root}/a.jsonl") == identity(str(root / "b.jsonl")) != identity(str(root / "c.jsonl"))


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints", ".cache", ".git", "_temporary", "sub/.cache/deep", "@eaDir", "$RECYCLE.BIN", "lost+found",
    ],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl"])
def test_what_is_hidden_is_left_out(hidden: str, pattern: str, tmp_path: Path) -> None:
    root = lay(tmp_path, "a.jsonl", "sub/b.jsonl", f"{hidden}/a.jsonl")
    assert names(f"{root}{pattern}") == ["a.jsonl", "sub/b.jsonl"]
    assert names(root / hidden) == [f"{hidden}/a.jsonl"], "named itself, it is read"
    assert [part.name for part in discover([str(root)])] == ["a", "sub"]
    assert len(listing(str(root), key=KEY).hidden) == 1


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "_temporary", "$RECYCLE.BIN", "lost+found"])
def test_a_star_matches_nothing_hidden(hidden: str, tmp_path: Path) -> None:
    root = lay(tmp_path, "a/a.jsonl", "a/_a.jsonl", f"{hidden}/b.jsonl")
    assert names(f"{root}/*/*.jsonl") == ["a/a.jsonl"]
    assert names(f"{root}/{hidden}/*.jsonl") == names(f"{root}/{hidden[0]}*/*.jsonl") == [f"{hidden}/b.jsonl"]
    assert names(f"{root}/a/_*.jsonl") == ["a/_a.jsonl"]
    for pattern, expected in (("**/*.jsonl", False), ("*/b.jsonl", False), (f"{hidden}/*.jsonl", True)):
        assert _fits([hidden, "b.jsonl"], pattern.split("/")) is expected, "as in an object store"


def test_a_file_is_read_under_the_name_that_says_what_it_is(tmp_path: Path) -> None:
    """The hub's cache: files without an ending, and links to them that have one, in every revision."""
    lay(tmp_path, "blobs/0a1b", "blobs/other.jsonl")
    for revision in ("one", "two"):
        (tmp_path / "snapshots" / revision).mkdir(parents=True)
        (tmp_path / "snapshots" / revision / "a.jsonl").symlink_to("../../blobs/0a1b")
    assert names(tmp_path) == ["blobs/other.jsonl", "blobs/0a1b"]


def test_revisions_of_one_data_set_are_not_read_together(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--x--y"
    lay(cache, "blobs/0a1b", "blobs/2c3d", "refs/main")
    (cache / "refs" / "main").write_text("22222222")
    for revision, blob in (("11111111", "0a1b"), ("22222222", "2c3d")):
        (cache / "snapshots" / revision / "data").mkdir(parents=True)
        (cache / "snapshots" / revision / "data" / "a.jsonl").symlink_to(f"../../../blobs/{blob}")
    for path in (tmp_path, cache):
        with pytest.raises(UserError, match=r"several revisions .*: 1111111, 2222222; name one: .*/22222222"):
            expand(str(path), key=KEY)
    assert names(cache / "snapshots" / "22222222") == ["blobs/2c3d"]
    old = cache / "snapshots" / "11111111" / "data" / "a.jsonl"
    old.unlink()
    old.symlink_to("../../../blobs/2c3d")  # they differ in nothing that is read
    assert len(expand(str(cache), key=KEY)) == 1


def test_caches_beside_a_saved_data_set_are_no_data(tmp_path: Path) -> None:
    for place in ("saved", "more/saved"):
        datasets.Dataset.from_dict({"text": [f"{place} {n}" for n in range(6)]}).save_to_disk(
            tmp_path / place, num_shards=2
        )
        (cache := tmp_path / place / "cache-0123456789abcdef.arrow").write_bytes(
            (tmp_path / place / "data-00000-of-00002.arrow").read_bytes()
        )
    for path, count in ((tmp_path, 12), (tmp_path / "more", 6), (tmp_path / "saved", 6)):
        assert len(names(path)) == len(set(names(path))) == count
    parts = discover([str(tmp_path)])
    assert sum(len(part.files) for part in parts) == 4
    assert str(cache) in ignored([str(tmp_path)], parts)
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    for read in (names, lambda path: discover([str(path)])):
        with pytest.raises(UserError, match="lacks its data files data-00001-of-00002"):
            read(tmp_path)


@pytest.mark.parametrize("pattern", ["", "/*.jsonl*"])
def test_a_file_that_lies_compressed_beside_itself_is_read_once(pattern: str, tmp_path: Path) -> None:
    root = lay(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    content = (root / "a.jsonl").read_bytes()
    (root / "a.jsonl.gz").write_bytes(gzip.compress(content))
    (root / "b.jsonl.xz").write_bytes(lzma.compress(json.dumps({"text": "another"}).encode()))
    (root / "d.jsonl.gz").write_bytes(gzip.compress(content.replace(b"a.", b"d.")))
    (root / "d.jsonl.zst").write_bytes(zstandard.compress(content.replace(b"a.", b"d.")))
    assert names(f"{root}{pattern}") == ["a.jsonl", "b.jsonl", "another", "c.jsonl", "d.jsonl"]
    parts = discover([str(root)])
    assert sorted(Path(file.path).name for part in parts for file in part.files) == [
        "a.jsonl", "b.jsonl", "b.jsonl.xz", "c.jsonl", "d.jsonl.gz",
    ]  # fmt: skip
    assert {Path(name).name for name in ignored([str(root)], parts)} == {"a.jsonl.gz", "d.jsonl.zst"}


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = lay(tmp_path, "a.jsonl", "b.jsonl")
    (root / "a.jsonl.gz").write_bytes(gzip.compress((root / "a.jsonl").read_bytes()))
    (root / "shards").symlink_to("gone")
    with caplog.at_level(logging.WARNING):
        assert names(root) == ["a.jsonl", "b.jsonl"]
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"links to what is not there: {root}/shards" in line for line in lines)
    assert any(f"compressed otherwise, or not at all: {root}/a.jsonl.gz" in line for line in lines)
    assert f"{root}/shards" in ignored([str(root)], discover([str(root)]))


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    lay(tmp_path, "good.jsonl")
    os.link(tmp_path / "good.jsonl", os.fsencode(tmp_path) + b"/b\xff.jsonl")
    (tmp_path / "good.jsonl").unlink()
    config = make_config(d={"path": str(tmp_path)})
    (line,) = map(str, validate_sources(config))
    with pytest.raises(UserError) as told:
        prepare(config)
    assert line.encode() == f"{tmp_path}/b\\udcff.jsonl: has a name that is not UTF-8; rename it".encode()
    assert str(told.value) == line


@pytest.mark.parametrize("uri", ["file://a.jsonl", "file://data/a.jsonl", "file://host/data"])
def test_a_file_uri_with_two_slashes_is_refused(uri: str) -> None:
    for read in (names, lambda path: discover([path])):
        with pytest.raises(UserError, match="names another machine; write file:/// and the whole path"):
            read(uri)


def test_links_out_of_the_folder_are_followed_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(tmp_path / "store", "x/one.jsonl", "x/two.jsonl", "blob")
    root = lay(tmp_path / "data", "here.jsonl")
    (root / "there").symlink_to(tmp_path / "store" / "x")
    (root / "w.jsonl").symlink_to(tmp_path / "store" / "blob")
    with caplog.at_level(logging.WARNING):
        assert names(root) == ["here.jsonl", "x/one.jsonl", "x/two.jsonl", "blob"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{root}/there -> {tmp_path}/store/x" in line
    assert "data.domains.d.path" in line


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    root = lay(tmp_path, "a.jsonl")
    (root / "annexed.jsonl").symlink_to(".git/annex/objects/x")
    for path in (root, f"{root}/*.jsonl", f"{root}/annexed.jsonl"):
        with pytest.raises(
            UserError, match=r"annexed\.jsonl: data.* is a link to \.git/annex/objects/x, which"
        ):
            expand(str(path), key=KEY)


def test_domains_do_not_share_a_file_by_a_link(tmp_path: Path) -> None:
    root = lay(tmp_path, "web/a.jsonl", "web/b.jsonl", "mix/own.jsonl")
    (root / "mix" / "also.jsonl").symlink_to("../web/a.jsonl")
    (root / "all").symlink_to("web")
    parts = {part.name: [Path(file.path).name for file in part.files] for part in discover([str(root)])}
    assert parts == {"mix": ["own.jsonl"], "web": ["a.jsonl", "b.jsonl"]}
    (mix,) = [part for part in discover([str(root)]) if part.name == "mix"]
    assert [Path(file.path).name for path in mix.paths for file in expand(path, key=KEY)] == ["own.jsonl"]


@pytest.mark.parametrize("folder", ["a b", "50%", "100%41", "ü#1", "what?", "[1]"])
def test_a_file_uri_is_decoded(folder: str, tmp_path: Path) -> None:
    root = lay(tmp_path / folder, "x y.jsonl", "100%41.jsonl")
    assert names(root.as_uri()) == names(root) == ["100%41.jsonl", "x y.jsonl"]
    assert names((root / "x y.jsonl").as_uri()) == ["x y.jsonl"]
    assert names(root.as_uri().replace("file://", "file://localhost")) == names(root)
    assert [part.name for part in discover([(root / "x y.jsonl").as_uri()])] == ["x_y"]
    assert Storage(root.as_uri()).uri == str(root)
