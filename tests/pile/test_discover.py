"""`opmix discover`: a pile of real text comes apart into what it was made of, and later files go the same ways."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import normalized_mutual_info_score

import opmix_ray
from opmix_ray.config import load_config
from opmix_ray.config.data import NAME
from opmix_ray.pile.assign import find_groups
from opmix_ray.pile.page import names_by, typical_words
from opmix_ray.runner.validate import check_all
from opmix_ray.sources.source import iter_documents
from tests.cli.conftest import Opmix
from tests.cli.conftest import opmix as opmix
from tests.init.test_begin import home as home
from tests.support import DEMO, DOMAINS

SIX = ("code", "speeches", "glossary", "german", "novel", "mathematics")


@pytest.fixture
def pile(tiny_data: Path, home: Path) -> Path:
    """Three domains line by line in turn, each line with where it is from; one row empty, one acting on a page."""
    lines = {name: (tiny_data / f"{name}.jsonl").read_text().splitlines() for name in DOMAINS}
    rows = [(name, k, json.loads(line)) for name, many in lines.items() for k, line in enumerate(many)]
    rows.sort(key=lambda row: (row[1], row[0]))
    path = home / "pile.jsonl"
    bad = {"text": "</blockquote><script>alert(1)</script> Theorem. |- ( ph -> ph )"}
    written = [{"text": ""}, bad, *({"from": name, **row} for name, _, row in rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


def sorted_rows(output: Path) -> dict[tuple[str, int], str]:
    """Domain by file and row."""
    found = {}
    for shard in output.glob("*/*.jsonl"):
        for line in shard.read_text().splitlines():
            row = json.loads(line)
            found[row["file"], row["row"]] = shard.parent.name
    return found


def agreement(output: Path, pile: Path) -> float:
    true = [json.loads(line).get("from") for line in pile.read_text().splitlines()]
    found = sorted_rows(output)
    pairs = [(true[row - 1], domain) for (_, row), domain in found.items() if true[row - 1]]
    return normalized_mutual_info_score([one for one, _ in pairs], [two for _, two in pairs])


@pytest.mark.seconds
def test_a_pile_becomes_domains_that_a_run_can_use(opmix: Opmix, pile: Path, home: Path) -> None:
    ended = opmix("discover", pile, "--domains", 3, "-o", "domains", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["documents"] == 1 + sum(DOMAINS.values())
    assert agreement(home / "domains", pile) >= 0.9
    assert found["stability"]["adjusted_rand"] > 0.8
    config = load_config(home / "domains" / "opmix.yaml")
    assert check_all(config, home / "domains" / "opmix.yaml") == []
    assert set(config.data.domains) == {domain["name"] for domain in found["domains"]}
    assert sum(domain["documents"] for domain in found["domains"]) == found["documents"]
    for domain in found["domains"]:
        read = list(iter_documents(config.data.domains[domain["name"]], domain["name"]))
        assert len(read) == domain["documents"]
        assert domain["words"]
        assert domain["examples"]
    page = (home / "domains" / "discover.html").read_text()
    assert "alert(1)" not in page or "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    assert all(domain["name"] in page for domain in found["domains"])
    assert not list(home.glob(".domains*"))

    again = opmix_ray.discover(pile, home / "again", domains=3)
    assert sorted_rows(home / "again") == sorted_rows(home / "domains")
    assert again["domains"] == found["domains"]

    part = home / "new.jsonl"
    part.write_text("".join(line + "\n" for line in pile.read_text().splitlines()[2::3]))
    ended = opmix("discover", part, "--like", "domains", "-o", "more")
    assert ended.code == 0, ended.err
    known = sorted_rows(home / "domains")
    for (_, row), domain in sorted_rows(home / "more").items():
        assert known[str(pile), 3 + 3 * (row - 1)] == domain


@pytest.mark.slow
def test_the_demo_thrown_together_comes_apart() -> None:
    texts, true = [], []
    for name in SIX:
        with gzip.open(DEMO / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            own = [json.loads(line)["text"][:2000] for line in islice(lines, 4000)]
        texts += own
        true += [name] * len(own)
    found = find_groups(texts, 6, seed=1)
    assert normalized_mutual_info_score(true, found.labels) > 0.9
    assert found.stability is not None
    assert found.stability.mutual_information > 0.9


@pytest.mark.seconds
def test_a_file_of_vectors_and_a_column_say_the_same(home: Path) -> None:
    """Vectors go against the words, so that words cannot have told."""
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 2
    vectors = np.array([[5, 0, 0], [0, 5, 0]])[kind] + rng.normal(size=(60, 3))
    texts = [
        f"this is the note number {k} of all that was written about nothing much at all" for k in range(60)
    ]
    pq.write_table(
        pa.table({"text": texts, "emb": pa.array(list(map(list, vectors)))}), home / "pile.parquet"
    )
    np.save(home / "vectors.npy", vectors)
    by_file = opmix_ray.discover("pile.parquet", "one", domains=2, vectors="vectors.npy")
    opmix_ray.discover("pile.parquet", "two", domains=2, vectors="emb")
    found = sorted_rows(home / "one")
    assert found == sorted_rows(home / "two")
    assert normalized_mutual_info_score(kind, [found["pile.parquet", k + 1] for k in range(60)]) == 1
    assert len({domain["name"] for domain in by_file["domains"]}) == 2
    assert by_file["config"] is None
    assert any(
        "tokens to train on, of which the shortest run would read" in note for note in by_file["notes"]
    )
    opmix_ray.discover("pile.parquet", "three", like="one", vectors="emb")
    assert sorted_rows(home / "three") == found


@pytest.mark.seconds
def test_conversations_stay_conversations(home: Path) -> None:
    rows = []
    for k in range(80):
        said = ("How do I bake bread with flour?", "Knead dough, then bake bread.") if k % 2 else (
            "def sort(values): return", "import numpy; return sorted(values)")  # fmt: skip
        turns = [{"role": "user", "content": f"{said[0]} {k}"}, {"role": "assistant", "content": said[1]}]
        rows.append({"messages": turns, "tools": [{"name": "t"}]})
    (home / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = opmix_ray.discover("chat.jsonl", "out", domains=2)
    shards = [json.loads(line) for shard in (home / "out").glob("*/*.jsonl") for line in shard.open()]
    assert sorted((row["row"], row["messages"], row["tools"]) for row in shards) == [
        (k + 1, row["messages"], row["tools"]) for k, row in enumerate(rows)
    ]
    assert [domain["documents"] for domain in found["domains"]] == [40, 40]


def _vectors(array: Any) -> Callable[[Path], list[object]]:
    def given(home: Path) -> list[object]:
        np.save(home / "v.npy", array, allow_pickle=True)
        return ["pile.jsonl", "--vectors", "v.npy"]

    return given


ROWS = 2 + sum(DOMAINS.values())
WRONG: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "one domain": (lambda home: ["pile.jsonl", "--domains", 1], "--domains = 1: must be from 2 to 64"),
    "too many": (lambda home: ["pile.jsonl", "--domains", 65], "--domains = 65: must be from 2 to 64"),
    "no file": (lambda home: ["gone.jsonl"], "error: FILES = gone.jsonl: no file matches"),
    "no text": (lambda home: [numbers(home)], "numbers.jsonl: FILES: no column holds text"),
    "an output": (lambda home: ["pile.jsonl", "-o", "."], "is there already"),
    "a short pile": (lambda home: [few(home, 3), "--domains", 4], "--domains = 4: is more than there are"),
    "alike": (lambda home: [few(home, 9, "the same"), "--domains", 3], "only 1 kinds can be told apart"),
    "empty": (lambda home: [few(home, 9, " \n "), "--domains", 3], "holds no document"),
    "short vectors": (_vectors(np.ones((9, 3))), f"holds 9 vectors for {ROWS - 1} documents ({ROWS} rows"),
    "nan": (_vectors(np.array([[1.0, np.nan]])), "row 1 holds a number that is not finite"),
    "flat": (_vectors(np.ones(9)), "holds an array of shape (9,)"),
    "words": (_vectors(np.array([["a"]])), "not documents by numbers"),
    "objects": (_vectors(np.array([None, 1], dtype=object)), "cannot be read"),
    "no vectors": (lambda home: ["pile.jsonl", "--vectors", "gone.npy"], "gone.npy: --vectors: no such file"),
    "no column": (lambda home: ["pile.jsonl", "--vectors", "emb"], "--vectors: the file has no column 'emb'; name"),
    "text": (lambda home: ["pile.jsonl", "--vectors", "text"], "is not a list of numbers"),
    "like nothing": (lambda home: ["pile.jsonl", "--like", "."], "holds no domains that were discovered"),
    "like and domains": (
        lambda home: ["pile.jsonl", "--like", ".", "--domains", 3], "--domains = 3: the domains are those of --like",
    ),
    "in a file": (lambda home: ["pile.jsonl", "-o", "pile.jsonl/out"], "pile.jsonl is no directory"),
    "a uri": (lambda home: ["pile.jsonl", "-o", "s3://bucket/out"], "is not a local directory"),
    "ids": (lambda home: [ids(home)], "holds token ids, whose words are not known"),
    "several kinds": (lambda home: ["pile.jsonl", chat(home)], "discover each on its own"),
}  # fmt: skip


def few(home: Path, documents: int, text: str | None = None) -> str:
    rows = [{"text": text or f"note {k}"} for k in range(documents)]
    (home / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "few.jsonl"


def numbers(home: Path) -> str:
    (home / "numbers.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    return "numbers.jsonl"


def ids(home: Path) -> str:
    (home / "ids.jsonl").write_text('{"input_ids": [1, 2]}\n{"input_ids": [3]}\n')
    return "ids.jsonl"


def chat(home: Path) -> str:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (home / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 2)
    return "chat.jsonl"


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.seconds
def test_wrong_input_is_one_line_and_nothing_is_written(
    case: str, opmix: Opmix, pile: Path, home: Path
) -> None:
    make, said = WRONG[case]
    given = make(home)
    before = set(home.rglob("*"))
    output = [] if "-o" in given else ["-o", "out"]
    assert said in opmix("discover", *given, *output).only_error()
    assert set(home.rglob("*")) == before


def test_names_are_unique_plain_and_never_those_of_a_split() -> None:
    words = [["für", "straße"], ["fur", "strasse"], ["fur", "strasse", "weg"], ["слово"], ["word"], [], [],
             ["test", "valid"], ["<b>", "../x"], ["漢字"]]  # fmt: skip
    names = names_by(words)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(NAME, name) for name in names)
    assert names[0] == "fur-strasse"
    assert not {"test", "valid"} & {word for name in names for word in name.split("-")}


def test_words_are_those_that_others_seldom_have() -> None:
    texts = ["the graph has nodes and edges"] * 5 + ["the whale swam in seas"] * 5
    words = typical_words(texts, np.array([0] * 5 + [1] * 5), 2)
    assert {"graph", "nodes"} <= set(words[0])
    assert "whale" in words[1]
    assert not set(words[0]) & set(words[1])
