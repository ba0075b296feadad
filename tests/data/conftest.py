"""A small tokenizer, and configurations over files that a test writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import RunConfig
from opmix_ray.data.store import TokenStore
from opmix_ray.data.tokenizer import train_bpe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small_tokenizer(
    template: str | None = None, turns: tuple[str, ...] = (), eos: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a line of text; `eos` ends a text in place of its own token."""
    text = "the question and the answer of the words in a number of sentences, one two three four five"
    tokenizer = train_bpe([text], 300)
    if turns:
        tokenizer.add_special_tokens({"additional_special_tokens": list(turns)})
    if eos:
        tokenizer.add_special_tokens({"eos_token": eos})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def chat_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("chat")
    small_tokenizer(CHATML, ("<|im_start|>", "<|im_end|>")).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_dir: str) -> Callable[..., RunConfig]:
    """`make_config(domain={"path": ...}, sets={...}, seq_len=8, ...)`."""

    def make(
        sets: dict[str, Any] | None = None,
        seq_len: int = 8,
        eval_fraction: float = 0.3,
        cache: str | None = None,
        tokenizer: dict[str, Any] | None = None,
        **domains: Any,
    ) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"config": {"model_type": "llama"}},
                "tokenizer": tokenizer or {"path": tokenizer_dir},
                "data": {
                    "domains": domains,
                    "seq_len": seq_len,
                    "eval_fraction": eval_fraction,
                    "cache": cache or str(tmp_path / "cache"),
                },
                "evaluation": {"sets": sets or {}},
                "stages": [{"name": "only", "steps": 1}],
            }
        )

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, Iterable[Any]], str]:
    """Write rows as JSON lines below `tmp_path`; returns the path."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def sentences(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows with different texts of some twenty words."""
    return [{"text": f"sentence {n} has the number {n * n} in it, " * 3} for n in range(start, start + count)]


def stream(store: TokenStore) -> list[int]:
    """All ids of a split, one after the other."""
    return [int(token) for sequence in store for token in sequence]


def same(one: TokenStore, other: TokenStore) -> bool:
    return stream(one) == stream(other) and len(one) > 0
