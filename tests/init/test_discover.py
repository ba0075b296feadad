"""Files and folders as people keep them become the domains that they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from opmix_ray.errors import UserError
from opmix_ray.init.discover import Part, discover, ignored, safe_name


def lay(root: Path, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return str(root)


def found(*data: str) -> dict[str, int]:
    return {part.name: len(part.files) for part in discover(data)}


def only(*data: str) -> Part:
    (part,) = discover(data)
    return part


def test_a_domain_per_file(tmp_path: Path) -> None:
    root = lay(tmp_path, "web.jsonl", "code.parquet", "chat.jsonl.gz", "notes.txt", "README.md")
    assert found(root) == {"chat": 1, "code": 1, "web": 1}


def test_small_texts_of_a_kind_are_one_domain_and_a_book_is_its_own(tmp_path: Path) -> None:
    root = lay(
        tmp_path, "a.py", "b.py", "c.md", "LICENSE", "state.json", "src/x.c", "src/deep/y.c", "src/README"
    )
    for name in ("a.py", "b.py", "one.txt", "two.txt"):
        (tmp_path / name).write_text("x = 1\n" * 30_000 if name.endswith("txt") else "x = 1\n" * 15_000)
    parts = {part.name: part for part in discover([root])}
    assert {name: len(part.files) for name, part in parts.items()} == {"py": 2, "one": 1, "two": 1, "src": 2}
    assert parts["py"].paths == [f"{root}/*.py"]
    names = [Path(path).name for path in ignored([root], list(parts.values()))]
    assert sorted(names) == ["LICENSE", "README", "c.md", "state.json"]


def test_a_domain_per_sub_folder_with_everything_below_it(tmp_path: Path) -> None:
    root = lay(tmp_path, "web/2024/a.jsonl", "web/2025/b.jsonl", "code/x.jsonl", "loose.jsonl")
    assert found(root) == {"loose": 1, "code": 1, "web": 2}
    paths = {part.name: part.paths for part in discover([root])}
    assert paths["web"] == [f"{root}/web"]


def test_a_folder_that_holds_one_folder_is_looked_into(tmp_path: Path) -> None:
    assert found(lay(tmp_path, "data/web.jsonl", "data/code.jsonl")) == {"code": 1, "web": 1}


def test_numbered_shards_are_one_domain(tmp_path: Path) -> None:
    names = [
        "web-00000-of-00002.parquet",
        "web-00001-of-00002.parquet",
        "c4.0.jsonl",
        "c4.1.jsonl",
        "b_part-7.jsonl",
    ]
    assert found(lay(tmp_path, *names)) == {"b_part-7": 1, "c4": 2, "web": 2}


def test_parts_of_spark_are_one_domain(tmp_path: Path) -> None:
    uuid = "6d0a3b9e-1b2c-4d5e-8f90-0123456789ab"
    for folder, name in (
        ("a", "part-0000{}-" + uuid + "-c000.snappy"),
        ("b", "part-0000{}.zstd"),
        ("c", "v2-{}"),
    ):
        (tmp_path / folder).mkdir()
        for number in (0, 1):
            (tmp_path / folder / f"{name.format(number)}.parquet").write_bytes(b"PAR1")
        assert len(discover([f"{tmp_path}/{folder}/*.parquet"])) == 1
        assert [part.name for part in discover([f"{tmp_path}/{folder}/*.parquet"])] == [
            "v2" if folder == "c" else folder
        ]


def test_years_are_not_shards(tmp_path: Path) -> None:
    assert found(lay(tmp_path, "laws-2019.jsonl", "laws-2020.jsonl")) == {"laws-2019": 1, "laws-2020": 1}


def test_files_without_a_name_of_their_own_take_the_folders(tmp_path: Path) -> None:
    assert found(lay(tmp_path / "wiki", "00000.jsonl", "00001.jsonl", "00002.jsonl")) == {"wiki": 3}


def test_single_files_and_folders_together(tmp_path: Path) -> None:
    root = lay(tmp_path, "a/x.jsonl", "a/y.jsonl", "b.jsonl", "c.jsonl")
    assert found(f"{root}/a", f"{root}/b.jsonl", f"{root}/c.jsonl") == {"x": 1, "y": 1, "b": 1, "c": 1}


def test_a_glob(tmp_path: Path) -> None:
    assert found(lay(tmp_path, "a.jsonl", "b.jsonl", "c.parquet") + "/*.jsonl") == {"a": 1, "b": 1}


def test_held_out_splits_beside_training_ones_are_left_out(tmp_path: Path) -> None:
    root = lay(tmp_path, "qa/train-0.jsonl", "qa/train-1.jsonl", "qa/test-0.jsonl", "web/a.jsonl")
    parts = {part.name: part for part in discover([root])}
    assert [Path(path).name for path in parts["qa"].paths] == ["train-0.jsonl", "train-1.jsonl"]
    assert parts["qa"].left_out == [f"{root}/qa/test-0.jsonl"]


def test_a_saved_data_set_with_splits_is_one_domain(tmp_path: Path) -> None:
    root = lay(tmp_path / "alpaca", "train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow")
    part = only(root)
    assert (part.name, part.paths) == ("alpaca", [f"{root}/train"])


def test_a_word_like_test_in_a_domain_of_its_own_is_kept(tmp_path: Path) -> None:
    assert found(lay(tmp_path, "unit-test/a.jsonl", "web/a.jsonl")) == {"unit-test": 1, "web": 1}


def test_a_folder_of_very_many_files_is_one_domain(tmp_path: Path) -> None:
    names = [f"page{chr(97 + i // 26)}{chr(97 + i % 26)}.jsonl" for i in range(40)]
    assert found(lay(tmp_path / "crawl", *names)) == {"crawl": 40}


def test_names_are_safe_and_unique(tmp_path: Path) -> None:
    root = lay(tmp_path, "a/größe (neu).jsonl", "b/größe (neu).jsonl")
    assert list(found(f"{root}/a/größe (neu).jsonl", f"{root}/b/größe (neu).jsonl")) == [
        "gr_e_neu",
        "gr_e_neu-2",
    ]
    assert safe_name("...") == "domain"


def test_nothing_to_read_names_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(
        UserError, match=r"--data = .*: holds no file that can be read \(it has photo.png\); .*\.jsonl"
    ):
        discover([str(tmp_path)])


def test_no_such_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file matches"):
        discover([str(tmp_path / "nowhere")])
