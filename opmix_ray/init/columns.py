"""Which columns hold text, prompts and answers, chat messages or token ids, by their names and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opmix_ray.errors import UserError
from opmix_ray.init.discover import KEY
from opmix_ray.paths import file_format
from opmix_ray.sources.messages import is_messages
from opmix_ray.sources.readers import names_of, value_of

TEXT = ("text", "content", "body", "document", "raw_content", "article", "code", "markdown", "passage")
WORDS = 6  # of a column's name, at most; more are a row
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("input", "output"),
)


def choose_columns(rows: Sequence[Mapping[str, Any]], file: str) -> dict[str, str]:
    """Configuration keys such as `text_column`, each with the column it should name.

    Args:
        rows: the first rows of a file.
        file: its name, for errors.

    Raises:
        UserError: no column holds anything that can be trained on.
    """
    columns = list(dict.fromkeys(name for row in rows for name in (*names_of(row), *row)))
    messages = next((c for c in columns if _all(rows, c, is_messages)), None)
    if messages is not None:
        return {"messages_column": messages}
    texts = [c for c in columns if _all(rows, c, lambda value: isinstance(value, str))]
    named = [c for word in TEXT for c in texts if c.rpartition(".")[2] == word]
    if text := min(named, key=lambda c: c.count("."), default=None):
        return {"text_column": text}
    for prompt, answer in PAIRS:
        if prompt in texts and answer in texts:
            return {"prompt_column": prompt, "completion_column": answer}
    ids = next((c for c in columns if _all(rows, c, _is_ids)), None)
    if ids is not None:
        return {"tokens_column": ids}
    if texts:
        longest = max(texts, key=lambda c: sum(len(value_of(row, c) or "") for row in rows))
        if file_format(file) == "csv" and len(longest.split()) > WORDS:
            raise UserError(
                f"has no line with the names of its columns before the first row ({longest[:40]}...)",
                file=file, key=KEY, remedy="write one, such as text",
            )  # fmt: skip
        return {"text_column": longest}
    raise UserError(
        f"no column holds text, messages or token ids (it has {', '.join(columns) or 'none'})",
        file=file,
        key=KEY,
        remedy='write rows such as {"text": "..."}',
    )


def _all(rows: Sequence[Mapping[str, Any]], column: str, fits: Any) -> bool:
    """Whether every value that is there fits, and there is one; an empty list may be one of anything."""
    values = [value for row in rows if (value := value_of(row, column)) is not None and value != []]
    return bool(values) and all(fits(value) for value in values)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)
