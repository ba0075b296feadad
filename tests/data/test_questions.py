"""Questions: what a row may look like, what becomes of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opmix_ray.config import RunConfig
from opmix_ray.data.held_out import report_sets, search_sets
from opmix_ray.data.prepare import prepare
from opmix_ray.data.questions import ChoiceSet, ExactSet, validate_questions
from opmix_ray.data.tokenizer import Encoder
from opmix_ray.errors import UserError
from tests.data.conftest import small_tokenizer

CHOICE = {"metric": "choice", "prompt_column": "q", "choices_column": "c", "answer_column": "a"}
EXACT = {"metric": "exact_match", "prompt_column": "q", "answer_column": "a", "max_new_tokens": 4}
ROWS = [
    {"q": "one and two", "c": ["three", "four", "five"], "a": 0},
    {"q": "the words", "c": ["question", "answer"], "a": "B"},
    {"q": "the number", "c": ["of words", "in sentences"], "a": "in sentences"},
    {"q": "the answer", "c": ["one", "two"], "a": "1"},
]


@pytest.fixture
def ask(tmp_path: Path, make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """A configuration with one set of questions made of rows."""

    def make(rows: list[dict[str, Any]], options: dict[str, Any], **more: Any) -> RunConfig:
        path = tmp_path / "quiz.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = tmp_path / "text.jsonl"
        text.write_text(
            "".join(json.dumps({"text": f"{n} words in sentences" * 5}) + "\n" for n in range(60))
        )
        domains = more.pop("domains", {"d": {"path": str(text)}})
        return make_config(sets={"quiz": {"path": str(path), **options}}, seq_len=16, **more, **domains)

    return make


def test_choices_in_ids(ask: Callable[..., RunConfig]) -> None:
    prepared = prepare(ask(ROWS, CHOICE))
    found = prepared.eval_sets["quiz"].questions()
    assert isinstance(found, ChoiceSet)
    assert (len(found), prepared.eval_sets["quiz"].eval_sequences) == (4, 4)
    encoder = Encoder(small_tokenizer())
    expected = {}
    for row, right in zip(ROWS, [0, 1, 1, 1], strict=True):
        prompt = encoder.texts([row["q"]])[0]
        whole = tuple(tuple([*prompt, *ids]) for ids in encoder.texts(list(row["c"])))
        expected[whole] = (right, len(prompt), tuple(map(len, row["c"])))
    for question in found.questions:
        ids = tuple(tuple(part.tolist()) for part in question.ids)
        assert (question.answer, question.starts[0], question.sizes) == expected.pop(ids)
    assert found.tokens == sum(len(ids) for question in found.questions for ids in question.ids)


def test_reports_and_searches_ask_different_questions(ask: Callable[..., RunConfig]) -> None:
    rows = [{"q": f"number {n}", "a": str(n)} for n in range(30)]
    prepared = prepare(ask(rows, EXACT))
    reported, searched = (f(prepared, 10, 5)["quiz"] for f in (report_sets, search_sets))
    assert isinstance(reported, ExactSet)
    assert isinstance(searched, ExactSet)
    assert (len(reported), len(searched)) == (10, 5)
    assert not set(reported.answers) & set(searched.answers)
    assert list(reported.answers) != [str(n) for n in range(10)], (
        "a fair sample, not the beginning of the file"
    )
    assert reported.stops == (0,)


def test_a_long_prompt_loses_its_beginning(ask: Callable[..., RunConfig]) -> None:
    prompt = "two three four five " * 20
    exact = prepare(ask([{"q": prompt, "a": "x"}], EXACT)).eval_sets["quiz"].questions()
    assert isinstance(exact, ExactSet)
    ids = Encoder(small_tokenizer()).texts([prompt])[0]
    assert exact.prompts[0].tolist() == ids[-12:].tolist(), "16 less 4 new tokens"
    choice = prepare(ask([{**ROWS[0], "q": prompt}], CHOICE)).eval_sets["quiz"].questions()
    assert isinstance(choice, ChoiceSet)
    assert max(map(len, choice.questions[0].ids)) == 16


@pytest.mark.parametrize(
    "options", [{**EXACT, "chat": True}, {"metric": "exact_match", "messages_column": "m"}]
)
def test_chat_prompts_end_where_the_assistant_is_to_speak(
    ask: Callable[..., RunConfig], chat_tokenizer_dir: str, options: dict[str, Any]
) -> None:
    turns = [{"role": "user", "content": "one and two"}, {"role": "assistant", "content": "three"}]
    config = ask([{"q": "one and two", "a": "three", "m": turns}], options)
    tokenizer = config.tokenizer.model_copy(update={"path": chat_tokenizer_dir})
    data = config.data.model_copy(update={"seq_len": 64})
    found = (
        prepare(config.model_copy(update={"tokenizer": tokenizer, "data": data}))
        .eval_sets["quiz"]
        .questions()
    )
    assert isinstance(found, ExactSet)
    assert found.answers == ("three",)
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(chat_tokenizer_dir).decode(found.prompts[0])
    assert text == "<|im_start|>user\none and two<|im_end|>\n<|im_start|>assistant\n"
    assert len(found.stops) == 3, "end of text, and the ends of turns"


def test_an_answer_that_is_asked_for_is_not_trained_on(ask: Callable[..., RunConfig], tmp_path: Path) -> None:
    rows = [{"q": f"number {n}", "a": f"{n} words"} for n in range(40)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "prompt_column": "q", "completion_column": "a"}
    prepared = prepare(ask(rows[:10], EXACT, domains={"d": source}, eval_fraction=0.2))
    assert 0 < prepared.domains["d"].manifest["leaks"] <= 10


def test_parquet_holds_questions_too(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "a": 0} for row in ROWS]), tmp_path / "quiz.parquet")
    pq.write_table(
        pa.table({"text": [f"{n} words in sentences" * 5 for n in range(60)]}), tmp_path / "d.parquet"
    )
    config = make_config(
        sets={"quiz": {"path": str(tmp_path / "quiz.parquet"), **CHOICE}},
        d={"path": str(tmp_path / "d.parquet")},
    )
    assert validate_questions(config) == []
    assert len(prepare(config).eval_sets["quiz"].questions() or ()) == 4


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ROWS,
            {"metric": "choice", "prompt_column": "q"},
            "quiz.choices_column: is needed by metric `choice`",
        ),
        (ROWS, {"metric": "exact_match"}, "quiz.prompt_column: is needed by metric `exact_match`"),
        (ROWS, {**CHOICE, "choices_column": "b"}, "the file has no column 'b'; it has: "),
        ([{"q": "x", "c": ["y"], "a": 0}], CHOICE, "line 1 is not a list of two choices or more"),
        ([{"q": "x", "c": ["y", ""], "a": 0}], CHOICE, "line 1 has an empty choice"),
        ([{"q": "x", "c": ["y", "z"], "a": 2}], CHOICE, "line 1 names none of its 2 choices"),
        ([{"q": "x", "c": ["y", "z"], "a": "D"}], CHOICE, "line 1 names none of its 2 choices"),
        ([{"q": "x", "a": None}], EXACT, "holds no document"),
    ],
)
def test_what_is_refused(
    ask: Callable[..., RunConfig], rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    config = ask(rows, options)
    errors = validate_questions(config)
    assert len(errors) == 1
    assert message in str(errors[0])
    assert errors[0].key is not None
    assert errors[0].key.startswith("evaluation.sets.quiz")
    with pytest.raises(UserError):
        prepare(config)


def test_a_chat_prompt_needs_a_template(ask: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"quiz\.chat = True: the tokenizer has no chat template"):
        prepare(ask([{"q": "x", "a": "y"}], {**EXACT, "chat": True}))


def test_half_of_the_questions_are_questions(ask: Callable[..., RunConfig]) -> None:
    found = prepare(ask(ROWS, CHOICE)).eval_sets["quiz"].questions()
    assert isinstance(found, ChoiceSet)
    both = [*found[:2].questions, *found[2:].questions]
    assert [q.answer for q in both] == [q.answer for q in found.questions]
    assert all(np.array_equal(a.ids[0], b.ids[0]) for a, b in zip(both, found.questions, strict=True))
