"""Tokenizers: the same text gives the same ids everywhere, and what cannot work says so."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from opmix_ray.config import RunConfig
from opmix_ray.data import tokenizer as module
from opmix_ray.data.tokenizer import (
    Encoder,
    equal_parts,
    load_saved_tokenizer,
    load_tokenizer,
    load_tokenizer_from,
    save_tokenizer,
    split_text,
    tokenizer_fingerprint,
    train_bpe,
    vocabulary_size,
)
from opmix_ray.errors import UserError
from tests.data.conftest import CHATML, sentences, small_tokenizer

Make = Callable[..., RunConfig]
DEMO = Path(__file__).parents[2] / "examples" / "data" / "tokenizer"


# ---- training ----


def test_training_is_a_function_of_the_texts() -> None:
    texts = ["the cat sat on the mat and would not leave " * 20, "ein anderer Satz " * 20]
    one, other = train_bpe(texts, 290), train_bpe(iter(texts), 290)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    assert len(one) == 290
    assert (one.eos_token, one.eos_token_id) == ("<|endoftext|>", 0)
    assert tokenizer_fingerprint(train_bpe(texts[:1], 290)) != tokenizer_fingerprint(one)


def test_training_needs_text() -> None:
    with pytest.raises(UserError, match="no text to train"):
        train_bpe(["", ""], 300)


@settings(deadline=None, max_examples=80)
@given(text=st.text())
@pytest.mark.seconds
def test_every_text_survives(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    (ids,) = Encoder(tokenizer).texts([text])
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


def test_the_tokenizer_that_ships_loads_and_reads_every_domain() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    assert (len(tokenizer), tokenizer.eos_token) == (4096, "<|endoftext|>")
    for text in ("def f(x):\n    return x", "Für die Änderung", "|- ( ph -> ps )", "∀🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the President of the United States")) <= 8


def test_a_tokenizer_trained_on_the_domains_is_kept(
    make_config: Make, write_rows: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr(module, "train_bpe", lambda *a: trained.append(a[1]) or train_bpe(*a))
    a = {"path": write_rows("a.jsonl", sentences(50))}
    b = {"path": write_rows("b.jsonl", [{"q": f"frage {n}", "a": f"antwort {n}"} for n in range(90)])}
    b |= {"prompt_column": "q", "completion_column": "a"}
    config = make_config(tokenizer={"train_vocab_size": 310}, a=a, b=b)
    first = load_tokenizer(config)
    assert len(first) == 310
    assert len(first.encode("antwort")) == 1
    assert tokenizer_fingerprint(load_tokenizer(config)) == tokenizer_fingerprint(first)
    assert trained == [310]
    load_tokenizer(make_config(tokenizer={"train_vocab_size": 311}, a=a, b=b))
    assert trained == [310, 311]


def test_equal_parts_repeat_what_is_short() -> None:
    assert list(equal_parts([["abc", "de"], ["x"]], 4)) == ["abc", "d", "x", "x", "x", "x"]
    with pytest.raises(UserError, match="no text"):
        list(equal_parts([["a"], [""]], 4))


def test_domains_of_tokens_train_no_tokenizer(make_config: Make, tmp_path: Path) -> None:
    np.arange(99, dtype=np.uint16).tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match="already tokenised"):
        load_tokenizer(make_config(tokenizer={"train_vocab_size": 300}, d={"path": str(tmp_path / "a.bin")}))


# ---- loading ----


def test_the_fingerprint_depends_on_the_content_alone(
    tokenizer: PreTrainedTokenizerFast, tokenizer_dir: str, tmp_path: Path
) -> None:
    fingerprint = tokenizer_fingerprint(tokenizer)
    moved = shutil.copytree(tokenizer_dir, tmp_path / "elsewhere")
    assert tokenizer_fingerprint(load_tokenizer_from(str(moved))) == fingerprint
    used = load_tokenizer_from(tokenizer_dir)
    used(["one", "two three four"], padding=False, truncation=True, max_length=2)
    assert tokenizer_fingerprint(used) == fingerprint
    assert tokenizer_fingerprint(small_tokenizer(CHATML)) != fingerprint
    assert tokenizer_fingerprint(small_tokenizer(turns=("<|im_end|>",))) != fingerprint


def test_a_saved_tokenizer_lies_under_its_fingerprint(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = save_tokenizer(tokenizer, str(tmp_path))
    assert path == save_tokenizer(tokenizer, str(tmp_path))
    assert Path(path).name == tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(load_saved_tokenizer(path)) == tokenizer_fingerprint(tokenizer)


def test_a_lone_tokenizer_json_loads(tokenizer_dir: str, tmp_path: Path) -> None:
    file = shutil.copy(Path(tokenizer_dir) / "tokenizer.json", tmp_path)
    assert load_tokenizer_from(str(file)).eos_token_id == 0
    assert load_tokenizer_from(str(tmp_path)).eos_token_id == 0


def test_the_models_own_tokenizer_is_the_default(make_config: Make, tokenizer_dir: str) -> None:
    config = make_config(d={"path": "x"})
    own = config.model_copy(
        update={
            "tokenizer": config.tokenizer.model_copy(update={"path": None}),
            "model": config.model.model_copy(update={"path": tokenizer_dir, "config": None}),
        }
    )
    assert load_tokenizer(own).eos_token_id == 0
    neither = own.model_copy(update={"model": config.model})
    with pytest.raises(UserError, match=r"tokenizer\.path: is missing"):
        load_tokenizer(neither)


def write_without_eos(directory: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)


def write_garbage(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.mark.parametrize(
    ("write", "file", "expected"),
    [
        (write_without_eos, "", "has no end-of-text token"),
        (write_without_eos, "tokenizer.json", "has no end-of-text token"),
        (write_garbage, "", "cannot be loaded as a tokenizer"),
        (write_garbage, "tokenizer.json", "cannot be loaded as a tokenizer"),
        (lambda directory: None, "", "cannot be loaded as a tokenizer"),
        (lambda directory: None, "tokenizer.json", "no such file or directory"),
    ],
)
def test_what_is_no_tokenizer_is_named(write: Any, file: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / file
    with pytest.raises(UserError) as caught:
        load_tokenizer_from(str(path))
    line = str(caught.value)
    assert line.startswith("tokenizer.path = ")
    assert expected in line
    assert "\n" not in line


# ---- encoding ----


def test_a_special_token_spelt_out_in_a_text_is_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "one<|endoftext|>two"
    assert 0 in tokenizer.encode(text)
    (ids,) = Encoder(tokenizer).texts([text])
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet="ab \n", max_size=200), piece=st.integers(2, 30))
def test_pieces_join_to_the_text_and_are_short(text: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        pieces = list(split_text(text))
    assert "".join(pieces) == text
    assert all(len(part) <= piece for part in pieces)
    assert all(pieces) or text == ""


def test_cutting_a_long_text_between_words_changes_no_id(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the question and the answer of five words " * 50
    expected = tokenizer.encode(text)
    monkeypatch.setattr(module, "PIECE", 64)
    monkeypatch.setattr(module, "BATCH", 100)
    one, none, other = Encoder(tokenizer).texts([text, "", "the answer"])
    assert one.tolist() == expected
    assert none.tolist() == []
    assert tokenizer.decode(other) == "the answer"


def test_an_encoder_travels(tokenizer: PreTrainedTokenizerFast) -> None:
    copy = pickle.loads(pickle.dumps(Encoder(tokenizer)))
    assert copy.texts(["the answer"])[0].tolist() == tokenizer.encode("the answer")


def test_the_vocabulary_counts_added_tokens() -> None:
    assert vocabulary_size(small_tokenizer(turns=("<|im_start|>", "<|im_end|>"))) == 302


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_in_the_place_of_a_tokenizer_is_named(
    name: str, tokenizer_dir: str, tmp_path: Path
) -> None:
    directory = shutil.copytree(tokenizer_dir, tmp_path / "t")
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for path in (directory, directory / name):
        with pytest.raises(
            UserError, match=rf"{name}: tokenizer.path: is a pointer of Git LFS.*git lfs pull"
        ):
            load_tokenizer_from(str(path))
