"""Copies of evaluation documents are found in every shape, and near-duplicates go to the same side."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, prepare, split_words, summary
from opmix_ray.overlap.leaks import HASHES, Prints, Table, bare, normal
from opmix_ray.overlap.near import groups, held_out
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


def every(step: int, form: str, text: str) -> str:
    """A text with some of its words in another form, which may hold the word's number too."""
    words = text.split()
    return " ".join(form.format(w, n) if n % step == step - 1 else w for n, w in enumerate(words))


COPIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "newline": lambda text: {"text": text + "\n"},
    "case and blanks": lambda text: {"text": text.upper().replace(" ", "  ")},
    "pairs": lambda text: dict(zip(("q", "a"), halves(text), strict=True)),
    "one word": lambda text: {"text": text.replace(text.split()[20], "lantern", 1)},
    "inside": lambda text: {"text": f"Question 7. {text} That is all there is to say about it."},
    "zero width": lambda text: {"text": re.sub(r"(\w{3})(?=\w)", "\\1\u200b", text)},
    "soft hyphens": lambda text: {"text": "\ufeff" + re.sub(r"(\w{3})(?=\w)", "\\1\u00ad", text)},
    "html": lambda text: {
        "text": "<p>" + re.sub(r"e(\w)", "<em>&#101;</em>\\1", text).replace(" ", "</p><p>", 9) + "</p>"
    },
    "entities": lambda text: {"text": text.replace(" ", "&nbsp;")},
    "markdown": lambda text: {
        "text": "# Title\n\n" + re.sub(r"(\w+) (\w+)", "**\\1** _\\2_ é", text, count=3)
    },
    "json": lambda text: {"text": json.dumps({"t": text.replace(" ", "\n")})},
    "links": lambda text: {"text": every(6, '[{}](https://a.org/page_(2)/{} "a title")', text)},
    "sources": lambda text: {"text": every(7, "{}[{}]", text)},
    "footnotes": lambda text: {"text": every(7, "{}<sup>{}</sup>", text)},
    "LaTeX": lambda text: {"text": every(5, "\\textbf{{{}}}", text)},
    "colours": lambda text: {"text": every(5, "\x1b[1;3{1}m{0}\x1b[0m", text)},
    "XML": lambda text: {"text": "<doc>" + every(5, '</seg><seg id="{1}">{0}', text) + "</doc>"},
    "a page": lambda text: {
        "text": f"<!DOCTYPE html><style>p {{color: red}}</style><!-- a note --><p>{every(9, '{}<!-- {} -->', text)}</p>"
    },
    "divided words": lambda text: {"text": re.sub(r"(\w{3})(?=\w{3} \w+ \w+ )", "\\1-\n", text)},
    "numbered lines": lambda text: {"text": "1. " + every(8, "\n{1}. {0}", text)},
    "most of it": lambda text: {"text": text[: int(0.8 * len(text))]},
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


NEAR: dict[str, Callable[[str], str]] = {
    "a word": lambda text: text.replace(text.split()[40], "lantern", 1),
    "two words": lambda text: text.replace(text.split()[40], "lantern", 1).replace(
        text.split()[70], "lamp", 1
    ),
    "a sentence more": lambda text: text + " All of this was said by a man from Riga.",
    "most of it": lambda text: text[: int(0.8 * len(text))],
    "markup": lambda text: f"<p>{text.replace(' ', '&nbsp;')}</p>",
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.seconds
def test_near_duplicates_of_what_is_held_out_are_not_trained_on(kind: str, seed: int) -> None:
    rows = texts(300, 40 + seed, 120)
    digests, chosen = chosen_of([*rows, *map(NEAR[kind], rows)], 0.05, least=80)
    torn = (chosen[:300] != chosen[300:]).sum()
    below = (digests < 0.05 * 2.0**64).sum()
    assert below / 1.5 <= chosen.sum() <= 1.5 * below
    assert torn <= 0.15 * chosen.sum(), (
        "also where chance puts more of them below the threshold than it should"
    )


def test_few_words_that_many_say_are_no_leak(make_config: Make, write_rows: Write) -> None:
    rows = [{"text": text} for text in texts(60, 3)]
    evaluated = [*texts(40, 4), "Yes, I see."]
    many = (
        trained(make_config, write_rows, rows + [{"text": "yes i see"}] * 20, evaluated).domains["d"].manifest
    )
    few = (
        trained(make_config, write_rows, rows + [{"text": "yes i see"}] * 3, evaluated).domains["d"].manifest
    )
    assert (many["leaks"], few["leaks"]) == (0, 3)


@pytest.mark.seconds
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


def questions(count: int, seed: int) -> list[str]:
    """Questions of one form, with few words of their own."""
    draw = random.Random(seed)
    return [
        f"Question: how many {draw.choice(WORDS)}s are there if {draw.randrange(90)} of {draw.randrange(900)} "
        f"are taken away from the {draw.choice(WORDS)}? Answer: there are {draw.randrange(900)} of them left."
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [40, 400])
def test_questions_of_one_form_are_no_near_duplicates(count: int) -> None:
    rows = questions(count, 1)
    words = [normal(row) for row in rows]
    digests = np.array([Document(text=row).digest() for row in rows], np.uint64)
    signatures = Prints.of(words).signatures()
    found = held_out(digests, signatures, np.full(count, 30), fraction=0.1, least=64)
    assert np.abs(found.chosen.astype(int) - (digests < 0.1 * 2.0**64)).sum() <= 1
    assert found.split <= 2


@pytest.mark.parametrize("copies", [2, 5, 40, 200])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_the_hold_out_keeps_its_size(copies: int, fraction: float) -> None:
    rows = []
    for text in texts(400 // copies, copies, 80):
        words = text.split()
        rows += [" ".join([*words[: n % 79], f"other{n}", *words[n % 79 + 1 :]]) for n in range(copies)]
    digests = np.array([Document(text=row).digest() for row in rows], np.uint64)
    signatures = Prints.of([normal(row) for row in rows]).signatures()
    tokens = np.full(len(rows), 80)
    found = held_out(digests, signatures, tokens, fraction=fraction, least=256)
    alone = digests < fraction * 2.0**64
    assert alone.sum() / 1.5 <= found.chosen.sum() <= 1.5 * alone.sum()
    if copies == 2:
        pairs = found.chosen.reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).mean() < 0.1 * fraction + found.split / len(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    again = held_out(digests[order], signatures[order], tokens, fraction=fraction, least=256)
    assert (again.chosen == found.chosen[order]).all(), "however the files are ordered"


def chosen_of(
    rows: list[str], fraction: float, least: int, tokens: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Digests of documents and which of them are held out."""
    digests = np.array([Document(text=row).digest() for row in rows], np.uint64)
    signatures = Prints.of([Document(text=row).words() for row in rows]).signatures()
    tokens = np.full(len(rows), 80) if tokens is None else tokens
    return digests, held_out(digests, signatures, tokens, fraction=fraction, least=least).chosen


@pytest.mark.parametrize("count", [2, 3, 6, 30])
@pytest.mark.parametrize("seed", range(8))
def test_a_small_domain_holds_out_its_least_digests(count: int, seed: int) -> None:
    rows = texts(count, 100 + seed, 80)
    digests, chosen = chosen_of(rows, 1e-9, least=80)
    assert chosen.sum() == 1
    assert digests[chosen] == digests.min()
    assert chosen_of(rows[::-1], 1e-9, least=80)[1].tolist() == chosen[::-1].tolist()
    _, three = chosen_of(rows, 1e-9, least=240)
    assert three.sum() == (1 if count < 6 else 3), (
        "a sequence on either side, or one document if there are not two"
    )
    half = chosen_of(rows, 0.5, least=80)[1]
    threshold = digests < 0.5 * 2.0**64
    assert (half == threshold).all() if threshold.any() else half.sum() == max(1, count // 2)


@pytest.mark.seconds
def test_what_the_threshold_holds_out_stays_as_it_was() -> None:
    for seed in range(20):
        digests, chosen = chosen_of(texts(60, seed, 80), 0.05, least=80)
        below = digests < 0.05 * 2.0**64
        assert (chosen == below).all() if below.any() else chosen.sum() == 3


def test_near_duplicates_of_a_small_hold_out_go_with_it_unless_nothing_else_is_there() -> None:
    pairs = [[text, text.replace(text.split()[40], "lantern", 1)] for text in texts(10, 31, 80)]
    _, chosen = chosen_of([row for pair in pairs for row in pair], 1e-9, least=80)
    assert chosen.sum() == 2
    first = int(np.flatnonzero(chosen)[0])
    assert first % 2 == 0
    assert chosen[first + 1]
    digests, chosen = chosen_of(pairs[0], 1e-9, least=80)
    assert chosen.sum() == 1, "two that are alike are a domain still"
    assert digests[chosen] == digests.min()


def test_a_long_document_is_not_held_out_where_short_ones_do() -> None:
    rows = texts(12, 32, 80)
    digests, _ = chosen_of(rows, 1e-9, least=80)
    tokens = np.where(digests == digests.min(), 10_000, 90)
    _, chosen = chosen_of(rows, 0.05, least=80, tokens=tokens)
    assert digests.min() not in digests[chosen]
    assert 80 <= tokens[chosen].sum() <= 11 * 90 - 80


def test_a_hold_out_of_examples_needs_one(make_config: Make, write_rows: Write) -> None:
    rows = [{"q": f"{n}?", "a": text} for n, text in enumerate(texts(4, 33, 5))]
    source = {"path": write_rows("d.jsonl", rows), "prompt_column": "q", "completion_column": "a"}
    manifest = prepare(make_config(seq_len=256, eval_fraction=1e-9, d=source)).domains["d"].manifest
    assert manifest["splits"]["eval"]["documents"] == 1
    assert manifest["splits"]["train"]["documents"] == 3


def test_what_is_not_held_out_together_is_said(make_config: Make, write_rows: Write) -> None:
    (text,) = texts(1, 6, 60)
    rows = [{"text": text.replace("river", f"river{n}", 1)} for n in range(6)]
    rows += [{"text": each} for each in texts(30, 7)]
    prepared = prepare(make_config(eval_fraction=0.1, d={"path": write_rows("d.jsonl", rows)}))
    assert prepared.domains["d"].eval_tokens > 0
    (line,) = split_words(prepared)
    assert re.match("d: [56] near-duplicates are not held out together", line)


def test_a_set_of_few_documents_with_the_header_of_all_is_no_leak(
    make_config: Make, write_rows: Write
) -> None:
    header = " ".join(texts(1, 9, 60))
    rows = [{"text": f"{header} {text}"} for text in texts(60, 3, 15)]
    evaluated = [f"{header} {text}" for text in texts(2, 4, 15)]
    copied = [{"text": evaluated[0] + "\n"}] * 3
    manifest = trained(make_config, write_rows, rows + copied, evaluated).domains["d"].manifest
    assert manifest["leaks"] in (0, 3), "the copies, unless they are held out"
    assert manifest["splits"]["eval"]["documents"] < 40


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


@pytest.mark.parametrize("place", ["system", "thoughts"])
def test_what_stands_beside_the_words_of_a_conversation_is_compared_too(
    place: str, make_config: Make, write_rows: Write, chat_tokenizer_dir: str
) -> None:
    evaluated = texts(40, 1)
    rows = []
    for number, text in enumerate([*evaluated, *texts(60, 2)]):
        talk = [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"so {number}"},
        ]
        system = {"role": "system", "content": text if place == "system" else "Be brief."}
        rows.append(
            {"talk": [system, *talk] if place == "system" else [talk[0], {**talk[1], "thinking": text}]}
        )
    config = make_config(
        sets={"t": {"path": write_rows("t.jsonl", [{"text": text} for text in evaluated])}},
        tokenizer={"path": chat_tokenizer_dir},
        seq_len=256,
        eval_fraction=0.2,
        d={"path": write_rows("d.jsonl", rows), "messages_column": "talk"},
    )
    assert 25 <= prepare(config).domains["d"].manifest["leaks"] <= 40


def test_of_two_evaluation_documents_the_one_that_is_given_away_most_is_told() -> None:
    evaluated = texts(2, 1)
    words = [normal(text) for text in evaluated]
    digests = np.array([Document(text=text).digest() for text in evaluated], np.uint64)
    table = Table.of(Prints.of(words), digests, ["t", "t"], words)
    for whole, part in ((0, 1), (1, 0)):
        both = [f"{words[whole]} and {' '.join(words[part].split()[:30])}"]
        assert table.find(Prints.of(both), np.array([1], np.uint64)).tolist() == [whole]


@pytest.mark.seconds
def test_what_is_opened_and_never_closed_is_looked_for_once() -> None:
    start = time.process_time()
    for mark in ("<!--", "<script>", "](http://", "<a ", "\\ab[", "<sup>", "[1"):
        bare(mark * 100_000)
    assert time.process_time() - start < 5


def test_an_empty_table_finds_nothing() -> None:
    prints = Prints.of(["a b c d e f", "", "a"])
    assert Table().find(prints, np.array([1, 2, 3], np.uint64)).tolist() == [-1, -1, -1]
    assert prints.counts().tolist() == [2, 0, 0]
