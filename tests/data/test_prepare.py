"""From files to sequences: what is held out, dropped, counted in the loss, and not done twice."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared, prepare, split_words, summary
from opmix_ray.data.store import TokenStore
from opmix_ray.data.tokenizer import load_saved_tokenizer
from opmix_ray.errors import UserError
from tests.data.conftest import same, sentences, stream

Make = Callable[..., RunConfig]
Write = Callable[..., str]


def held_out(row: dict[str, str], fraction: float) -> bool:
    from opmix_ray.sources.source import Document

    return Document(text=row["text"]).digest() / 2**64 < fraction


# ---- text ----


def test_documents_are_joined_by_end_of_text_and_cut(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sentences(100)
    prepared = prepare(make_config(d={"path": write_rows("a.jsonl", rows)}))
    domain = prepared.domains["d"]
    expected: list[int] = []
    for row in rows:
        if not held_out(row, 0.3):
            expected += [*tokenizer.encode(row["text"]), tokenizer.eos_token_id]
    assert stream(domain.train()) == expected[: len(expected) // 8 * 8]
    part = domain.manifest["splits"]["train"]
    assert part["tokens"] == len(expected)
    assert part["dropped_tokens"] == len(expected) % 8
    assert (domain.train_sequences, domain.train_tokens) == (len(expected) // 8, len(expected) // 8 * 8)
    assert domain.train()[0].dtype == np.uint16
    assert (prepared.seq_len, prepared.eos_token_id, prepared.vocab_size) == (8, 0, len(tokenizer))


def test_the_held_out_documents_are_those_with_a_small_digest(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sentences(300)
    domain = prepare(make_config(d={"path": write_rows("a.jsonl", rows)})).domains["d"]
    chosen = [row["text"] for row in rows if held_out(row, 0.3)]
    assert domain.manifest["splits"]["eval"]["documents"] == len(chosen)
    assert 60 < len(chosen) < 120
    text = tokenizer.decode(stream(domain.evaluation()))
    found = text.split("<|endoftext|>")
    assert set(found[:-1]) <= set(chosen)
    assert len(found) >= len(chosen) - 1
    expected = sum(len(t.encode()) for t in chosen) / domain.manifest["splits"]["eval"]["tokens"]
    assert domain.bytes_per_token == pytest.approx(expected)


@pytest.mark.seconds
def test_the_held_out_part_stays_when_files_are_split_or_reordered(
    make_config: Make, write_rows: Write
) -> None:
    rows = sentences(200)
    whole = prepare(make_config(d={"path": write_rows("whole.jsonl", rows)})).domains["d"]
    parts = [write_rows(f"parts/{n}.jsonl", rows[n * 40 : n * 40 + 40]) for n in range(5)]
    split = prepare(make_config(d={"path": parts})).domains["d"]
    assert same(whole.train(), split.train())
    assert same(whole.evaluation(), split.evaluation())
    shuffled = random.Random(0).sample(rows, len(rows))
    other = prepare(make_config(d={"path": write_rows("shuffled.jsonl", shuffled)})).domains["d"]
    assert same(whole.evaluation(), other.evaluation())
    assert not same(whole.train(), other.train())


def test_duplicates_land_on_the_same_side(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sentences(60)
    config = make_config(
        a={"path": write_rows("a.jsonl", rows * 2)}, b={"path": write_rows("b.jsonl", sentences(60))}
    )
    prepared = prepare(config)
    for domain in prepared.domains.values():
        for other in prepared.domains.values():
            trained = set(tokenizer.decode(stream(domain.train())).split("<|endoftext|>")[:-1])
            assert not trained & set(tokenizer.decode(stream(other.evaluation())).split("<|endoftext|>")[:-1])
    assert prepared.domains["a"].manifest["splits"]["eval"]["documents"] % 2 == 0


def test_documents_of_evaluation_sets_are_dropped_from_training_and_counted(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sentences(100)
    leaked = rows[10:30]
    config = make_config(
        sets={"test": {"path": write_rows("test.jsonl", leaked)}},
        d={"path": write_rows("d.jsonl", rows)},
        clean={"path": write_rows("clean.jsonl", sentences(50, start=500))},
    )
    prepared = prepare(config)
    expected = [row["text"] for row in leaked if not held_out(row, 0.3)]
    assert prepared.domains["d"].manifest["leaks"] == len(expected) > 5
    assert prepared.domains["clean"].manifest["leaks"] == 0
    trained = tokenizer.decode(stream(prepared.domains["d"].train()))
    assert not any(row["text"] in trained for row in leaked)
    assert list(prepared.eval_sets) == ["d", "clean", "test"]
    test = prepared.eval_sets["test"]
    assert (test.train_sequences, test.manifest["splits"]["eval"]["documents"]) == (0, 20)
    rows_of_summary = summary(prepared, {"d": 0.5, "clean": 0.5}, 10_000)
    assert [row["leaks"] for row in rows_of_summary] == [len(expected), 0]


def test_the_summary_counts_epochs_at_a_mixture(make_config: Make, write_rows: Write) -> None:
    config = make_config(a={"path": write_rows("a.jsonl", sentences(50)), "max_epochs": 3},
                         b={"path": write_rows("b.jsonl", sentences(90, 50))})  # fmt: skip
    prepared = prepare(config)
    first, second = summary(prepared, {"a": 0.25}, 4 * prepared.domains["a"].train_tokens)
    assert (first["domain"], first["documents"], first["max_epochs"]) == ("a", 50, 3)
    assert (first["epochs"], second["epochs"], second["max_epochs"]) == (1.0, 0.0, None)


def test_prepared_travels_to_other_processes_and_names_a_tokenizer(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare(make_config(d={"path": write_rows("a.jsonl", sentences(40))}))
    copy: Prepared = pickle.loads(pickle.dumps(prepared))
    assert copy == prepared
    assert same(copy.domains["d"].train(), prepared.domains["d"].train())
    loaded = load_saved_tokenizer(copy.tokenizer_path)
    assert loaded.encode("the answer") == tokenizer.encode("the answer")


def test_many_rows_without_text_are_told(make_config: Make, write_rows: Write) -> None:
    """Shards whose column has another name later on: the first file has it, so nothing is missing."""
    rows = [*sentences(40), *({"content": row["text"]} for row in sentences(20, 40))]
    prepared = prepare(make_config(d={"path": write_rows("d.jsonl", rows)}))
    assert split_words(prepared) == ["d: 20 of its 60 rows hold nothing in the column that is read"]
    assert split_words(prepare(make_config(d={"path": write_rows("d.jsonl", rows[:41])}))) == []


@pytest.mark.seconds
def test_a_document_of_a_single_long_line(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = "the question of the answer " * 20_000
    prepared = prepare(make_config(d={"path": write_rows("a.jsonl", [{"text": long}, *sentences(20)])}))
    text = tokenizer.decode(
        stream(prepared.domains["d"].train()) + stream(prepared.domains["d"].evaluation())
    )
    assert long in text


# ---- instruction data ----


def counted(store: TokenStore, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """For each sequence, the text of its tokens that count in the loss."""
    return [
        tokenizer.decode([int(t) for t in store[i][store.mask(i)]], skip_special_tokens=False)
        for i in range(len(store))
    ]


def test_only_the_answer_and_its_end_count(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"q": f"question {n}: ", "a": f"answer {n * n}"} for n in range(60)]
    source = {"path": write_rows("a.jsonl", rows), "prompt_column": "q", "completion_column": "a"}
    domain = prepare(make_config(seq_len=64, d=source)).domains["d"]
    answers = set()
    for store in (domain.train(), domain.evaluation()):
        assert store.has_mask
        for index in range(len(store)):
            ids, mask = store[index], store.mask(index)
            position = 0
            while position < len(ids) and mask[position:].any():
                end = position + int(np.argmax(mask[position:]))
                stop = end + int(np.argmin(np.append(mask[end:], False)))
                assert tokenizer.decode(ids[position:end]).startswith("question ")
                assert ids[stop - 1] == tokenizer.eos_token_id
                answers.add(tokenizer.decode(ids[end : stop - 1]))
                position = stop
            assert (ids[position:] == tokenizer.eos_token_id).all(), "the rest is fill"
    assert answers == {row["a"] for row in rows}


def test_a_long_prompt_leaves_no_answer_and_a_long_answer_is_cut(
    make_config: Make, write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"q": "x", "a": f"{n} yes"} for n in range(40)]
    rows += [{"q": "z" * 100, "a": f"never seen {n}"} for n in range(7)]
    rows += [{"q": "y", "a": "w" * 100 + str(n)} for n in range(9)]
    source = {"path": write_rows("a.jsonl", rows), "prompt_column": "q", "completion_column": "a"}
    domain = prepare(make_config(seq_len=16, eval_fraction=0.4, d=source)).domains["d"]
    parts = domain.manifest["splits"].values()
    assert sum(part["without_answer"] for part in parts) == 7
    assert sum(part["truncated"] for part in parts) == 9
    assert sum(part["documents"] for part in parts) == 49
    for part in parts:
        assert part["sequences"] * 16 == part["tokens"] + part["padding"]
    texts = counted(domain.train(), tokenizer) + counted(domain.evaluation(), tokenizer)
    assert not any("never" in text for text in texts)
    assert any(text == "w" * 15 for text in texts), "prompt of one token, then the answer to the end"


def test_examples_are_packed_whole(make_config: Make, write_rows: Write) -> None:
    rows = [{"q": "q" * (n % 5), "a": "a" * (1 + n % 7) + str(n)} for n in range(200)]
    source = {"path": write_rows("a.jsonl", rows), "prompt_column": "q", "completion_column": "a"}
    store = prepare(make_config(seq_len=16, d=source)).domains["d"].train()
    for index in range(len(store)):
        ids, mask = store[index], store.mask(index)
        ends = np.flatnonzero(mask & (ids == 0))
        assert not mask[ends[-1] + 1 :].any(), "the last example that begins in a sequence also ends in it"
    assert store.manifest["splits"]["train"]["padding"] < 0.2 * len(store) * 16


CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "two words"},
    {"role": "assistant", "content": "one answer"},
    {"role": "user", "content": "three words"},
    {"role": "assistant", "content": "two answers"},
]


def chat_rows(count: int) -> list[dict[str, Any]]:
    return [{"m": [*CHAT[:-1], {"role": "assistant", "content": f"number {n}"}]} for n in range(count)]


def test_only_the_assistants_turns_count(
    make_config: Make, write_rows: Write, chat_tokenizer_dir: str
) -> None:
    source = {"path": write_rows("a.jsonl", chat_rows(40)), "messages_column": "m"}
    prepared = prepare(make_config(seq_len=256, tokenizer={"path": chat_tokenizer_dir}, d=source))
    tokenizer = load_saved_tokenizer(prepared.tokenizer_path)
    seen = []
    store = prepared.domains["d"].train()
    for text in counted(store, tokenizer):
        for example in text.removesuffix("<|endoftext|>").split("<|endoftext|>"):
            first, second, rest = example.split("<|im_end|>")
            assert (first, rest) == ("one answer", "")
            seen.append(second)
    assert len(seen) == store.manifest["splits"]["train"]["documents"] > 10
    assert all(text.startswith("number ") for text in seen)
    whole = tokenizer.decode(store[0])
    assert whole.startswith("<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\ntwo words<|im_end|>\n")
    part = prepared.domains["d"].manifest["splits"]["eval"]
    assert prepared.domains["d"].bytes_per_token == part["bytes"] / part["counted_tokens"]


def test_messages_need_a_chat_template(make_config: Make, write_rows: Write) -> None:
    source = {"path": write_rows("a.jsonl", chat_rows(4)), "messages_column": "m"}
    with pytest.raises(
        UserError, match=r"data\.domains\.d\.messages_column = m: the tokenizer has no chat templ"
    ):
        prepare(make_config(d=source))


# ---- tokens ----


def token_file(path: Path, documents: int, vocab: int) -> str:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, vocab, 20).tolist() for _ in range(documents)]
    pq.write_table(pa.table({"input_ids": rows}), path)
    return str(path)


def test_tokens_go_through_as_they_are(make_config: Make, tmp_path: Path) -> None:
    path = token_file(tmp_path / "a.parquet", 50, 290)
    domain = prepare(make_config(d={"path": path, "tokens_column": "input_ids"})).domains["d"]
    rows = pq.read_table(path)["input_ids"].to_pylist()
    joined = stream(domain.train()) + stream(domain.evaluation())
    inside = [row for row in rows if str([*row, 0])[1:-1] in str(joined)]
    assert len(inside) >= 48, "all but those cut off at the end of a split"
    assert domain.bytes_per_token is None


def test_a_stream_without_ends_is_held_out_by_sequences(make_config: Make, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 300, 8 * 100)
    ids.astype(np.uint32).tofile(tmp_path / "a.bin")
    source = {"path": str(tmp_path / "a.bin"), "token_dtype": "uint32"}
    domain = prepare(make_config(d=source)).domains["d"]
    there = [sequence.tolist() for store in (domain.train(), domain.evaluation()) for sequence in store]
    assert sorted(there) == sorted(ids.reshape(-1, 8).tolist())
    assert 10 < domain.eval_sequences < 60


def test_a_token_outside_the_vocabulary_is_named(
    make_config: Make, tmp_path: Path, tokenizer_dir: str
) -> None:
    path = token_file(tmp_path / "a.parquet", 50, 5000)
    with pytest.raises(UserError) as caught:
        prepare(make_config(d={"path": path, "tokens_column": "input_ids"}))
    assert "outside the vocabulary of 300 of the tokenizer " + tokenizer_dir in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("sets", [False, True])
def test_an_id_below_nought_is_named(make_config: Make, tmp_path: Path, sets: bool) -> None:
    rows = [[5, 6, 7, 8, 9, 10, 11, 0]] * 60
    rows[7] = [5, -100, 7, 8, 9, 10, 11, 0]
    np.save(tmp_path / "a.npy", np.concatenate(rows).astype(np.int32))
    (tmp_path / "t.jsonl").write_text('{"text": "a text of an evaluation set"}\n' * 9)
    more = {"t": {"path": str(tmp_path / "t.jsonl")}} if sets else {}
    with pytest.raises(UserError, match="holds the token id -100, outside the vocabulary of 300"):
        prepare(make_config(sets=more, d={"path": str(tmp_path / "a.npy")}))


# ---- too little ----


def test_less_than_one_sequence_is_refused(make_config: Make, write_rows: Write) -> None:
    path = write_rows("a.jsonl", sentences(30))
    with pytest.raises(UserError) as caught:
        prepare(make_config(seq_len=4096, d={"path": path}))
    line = str(caught.value)
    assert line.startswith(f"{path}: data.domains.d: the held-out part has ")
    assert "less than one sequence of 4096; raise data.eval_fraction" in line
    with pytest.raises(UserError, match="training part has 0 tokens in 0 documents"):
        prepare(make_config(eval_fraction=0.999999, d={"path": path}))
    small = write_rows("small.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"evaluation\.sets\.t: the held-out part has 2 tokens in 1 doc"):
        prepare(make_config(sets={"t": {"path": small}}, d={"path": path}))


def test_a_domain_that_is_wholly_held_out_elsewhere_is_refused(make_config: Make, write_rows: Write) -> None:
    path = write_rows("a.jsonl", sentences(30))
    with pytest.raises(UserError, match=r"data\.domains\.d: the training part has 0 tokens"):
        prepare(make_config(sets={"t": {"path": path}}, d={"path": path}))


def test_a_set_with_the_name_of_a_domain_is_refused(make_config: Make, write_rows: Write) -> None:
    path = write_rows("a.jsonl", sentences(30))
    with pytest.raises(UserError, match=r"evaluation\.sets\.d: has the name of a domain"):
        prepare(make_config(sets={"d": {"path": path}}, d={"path": path}))
