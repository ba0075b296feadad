"""A file is itself, whatever its name: links, loops, hidden folders and URIs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from opmix_ray.config import SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.init.discover import discover
from opmix_ray.sources.listing import expand, identity, listing
from opmix_ray.sources.source import iter_documents, open_source
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
    if pattern and not hidden.rpartition("/")[0] and not hidden.startswith("."):
        pytest.skip("a glob names what it matches")
    root = lay(tmp_path, "a.jsonl", "sub/b.jsonl", f"{hidden}/a.jsonl")
    assert names(f"{root}{pattern}") == ["a.jsonl", "sub/b.jsonl"]
    assert names(root / hidden) == [f"{hidden}/a.jsonl"], "named itself, it is read"
    assert [part.name for part in discover([str(root)])] == ["a", "sub"]
    assert len(listing(str(root), key=KEY).hidden) == 1


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
