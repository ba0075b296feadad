"""Copies of evaluation documents are found in every shape, and near-duplicates go to the same side."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opmix_ray.config import RunConfig
from opmix_ray.data.overlap import HASHES, Prints, Table, groups
from opmix_ray.data.prepare import Prepared, prepare, summary
from opmix_ray.sources.normal import normal
from opmix_ray.sources.source import Document

Make = Callable[..., RunConfig]
Write = Callable[..., str]
WORDS = (
    "river stone bridge letter market window garden music paper silver engine forest candle winter".split()  # noqa: SIM905
)


def texts(count: int, seed: int, length: int = 40) -> list[str]:
    """Different texts out of the same words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) + "." for _ in range(count)]


def halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[:20]), " ".join(words[20:])


COPIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "newline": lambda text: {"text": text + "\n"},
    "case and blanks": lambda text: {"text": text.upper().replace(" ", "  ")},
    "pairs": lambda text: dict(zip(("q", "a"), halves(text), strict=True)),
    "one word": lambda text: {"text": text.replace(text.split()[20], "lantern", 1)},
    "inside": lambda text: {"text": f"Question 7. {text} That is all there is to say about it."},
    "excerpt": lambda text: {"text": " ".join(text.split()[3:35])},
}


def trained(
    make_config: Make, write_rows: Write, rows: list[dict[str, Any]], evaluated: list[str]
) -> Prepared:
    source: dict[str, Any] = {"path": write_rows("d.jsonl", rows)}
    if "q" in rows[-1]:
        source |= {"prompt_column": "q", "completion_column": "a"}
    sets = {"t": {"path": write_rows("t.jsonl", [{"text": text} for text in evaluated])}}
    return prepare(make_config(sets=sets, seq_len=256, eval_fraction=0.2, d=source))


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_evaluation_documents_are_left_out(kind: str, make_config: Make, write_rows: Write) -> None:
    evaluated, other = texts(40, 1), texts(60, 2)
    copy = COPIES[kind]
    as_row = copy if kind == "pairs" else lambda text: {"text": text}
    prepared = trained(make_config, write_rows, [*map(as_row, other), *map(copy, evaluated)], evaluated)
    manifest = prepared.domains["d"].manifest
    held_out = manifest["splits"]["eval"]["documents"]
    assert manifest["leaks"] == 100 - held_out - manifest["splits"]["train"]["documents"]
    assert 25 <= manifest["leaks"] <= 40, "all of them but those that are held out"
    assert manifest["leaked"]["t"]["documents"] == manifest["leaks"]
    assert manifest["leaked"]["t"]["examples"][0] in {normal(text)[:60] for text in evaluated}
    (row,) = summary(prepared, {"d": 1.0}, 1000)
    assert row["leaked"].startswith(f"{manifest['leaks']} of t, such as ")


def test_what_only_shares_a_template_is_no_leak(make_config: Make, write_rows: Write) -> None:
    licence = " ".join(texts(1, 9, 60))
    rows = [{"text": f"{licence} {text}"} for text in texts(60, 3, 15)]
    prepared = trained(make_config, write_rows, rows, [f"{licence} {text}" for text in texts(40, 4, 15)])
    manifest = prepared.domains["d"].manifest
    assert (manifest["leaks"], manifest["leaked"]) == (0, {})
    assert 2 <= manifest["splits"]["eval"]["documents"] <= 30


def test_near_duplicates_go_to_the_same_side(make_config: Make, write_rows: Write) -> None:
    alone = texts(150, 5, 80)
    rows = [
        {"text": text} for text in [*alone, *(text.replace(text.split()[40], "lantern", 1) for text in alone)]
    ]
    random.Random(0).shuffle(rows)
    prints = Prints.of([normal(row["text"]) for row in rows])
    found = groups(prints.signatures())
    pairs = [np.flatnonzero(found == name) for name in np.unique(found)]
    assert sum(len(pair) == 2 for pair in pairs) >= 120
    manifest = (
        prepare(make_config(eval_fraction=0.3, d={"path": write_rows("d.jsonl", rows)})).domains["d"].manifest
    )
    assert 50 < manifest["splits"]["eval"]["documents"] < 130


def test_a_group_that_shares_a_template_is_none() -> None:
    alike = [" ".join([*WORDS * 9, str(n)]) for n in range(50)]
    assert groups(Prints.of(alike).signatures()).tolist() == list(range(50))
    assert groups(np.zeros((0, HASHES), np.uint32)).tolist() == []


def test_the_words_are_the_same_in_every_shape() -> None:
    shapes = [
        Document(text="Is it 4?\nIt is: FOUR!\n"),
        Document(prompt="is it 4", completion="it is four"),
        Document(messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it 4?"},
            {"role": "assistant", "content": "It is four."},
        ]),
    ]  # fmt: skip
    assert {shape.words() for shape in shapes} == {"is it 4 it is four"}
    assert len({shape.digest() for shape in shapes}) == 1
    assert normal("ﬁne Straße 東京へ") == "fine strasse 東 京 へ"
    assert Document(text="!?").digest() != Document(text="?!").digest()


def test_ids_are_compared_as_text(
    make_config: Make, write_rows: Write, tokenizer: Any, tmp_path: Any
) -> None:
    evaluated = texts(40, 1)
    ids = [tokenizer.encode(text + "\n") for text in [*texts(60, 2), *evaluated]]
    source = {"path": write_rows("ids.jsonl", [{"ids": each} for each in ids]), "tokens_column": "ids"}
    sets = {"t": {"path": write_rows("t.jsonl", [{"text": text} for text in evaluated])}}
    manifest = prepare(make_config(sets=sets, eval_fraction=0.2, d=source)).domains["d"].manifest
    assert 25 <= manifest["leaks"] <= 40


def test_an_empty_table_finds_nothing() -> None:
    prints = Prints.of(["a b c d e f", "", "a"])
    assert Table().find(prints, np.array([1, 2, 3], np.uint64)).tolist() == [-1, -1, -1]
    assert prints.counts().tolist() == [2, 0, 0]
