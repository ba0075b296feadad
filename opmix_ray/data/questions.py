"""Questions with a right answer, in ids: asked by the likelihood of choices, or by greedy continuation.

    questions = read_questions(config.evaluation.sets["quiz"], "evaluation.sets.quiz", encoder, seq_len=1024)
    questions[:64]                   # a ChoiceSet or an ExactSet, like the (ids, mask) of a set measured by loss

They are ordered by a hash of their content, so that a beginning of them is a fair sample.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opmix_ray.config import EvaluationSetConfig, RunConfig, SourceConfig
from opmix_ray.data.chat import ChatError, render
from opmix_ray.data.tokenizer import Encoder
from opmix_ray.errors import UserError, user_errors
from opmix_ray.paths import file_format
from opmix_ray.sources import plain, readers
from opmix_ray.sources.files import InputFile
from opmix_ray.sources.messages import messages, role_of, tools
from opmix_ray.sources.source import CHECKED_FILES, TOOLS, Document, Source, empty_source, open_source

_NEEDED = {
    "choice": ["prompt_column", "choices_column", "answer_column"],
    "exact_match": ["prompt_column", "answer_column"],
}


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question.

    Args:
        ids: of every choice: the prompt and then the choice.
        starts: where the choice begins in each of `ids`.
        sizes: bytes of text of each choice.
        answer: which one is right.
    """

    ids: tuple[np.ndarray, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceSet:
    """Multiple-choice questions; `[a:b]` gives some of them.

    Args:
        questions: in order.
        length_normalised: compare log-likelihoods per byte instead of their sums.
    """

    questions: tuple[Choice, ...]
    length_normalised: bool = False

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, part: slice) -> ChoiceSet:
        return replace(self, questions=self.questions[part])

    @property
    def tokens(self) -> int:
        """Tokens that are passed through a model to answer all."""
        return sum(len(ids) for question in self.questions for ids in question.ids)


@dataclass(frozen=True)
class ExactSet:
    """Questions that are answered by greedy continuation; `[a:b]` gives some of them.

    Args:
        prompts: ids.
        answers: texts; blank space around them does not count.
        max_new_tokens: longest continuation.
        stops: ids that end a continuation.
        tokenizer: directory or URI of the tokenizer that turns ids into text.
    """

    prompts: tuple[np.ndarray, ...]
    answers: tuple[str, ...]
    max_new_tokens: int
    stops: tuple[int, ...]
    tokenizer: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> ExactSet:
        return replace(self, prompts=self.prompts[part], answers=self.answers[part])

    @property
    def tokens(self) -> int:
        """Tokens that are passed through a model to answer all, at most."""
        return sum(len(prompt) + self.max_new_tokens for prompt in self.prompts)


Questions = ChoiceSet | ExactSet


@dataclass(frozen=True)
class Asked:
    """One row of a file: prompt as text or messages, the right answer's text, choices and tools if there are any."""

    prompt: str | list[dict[str, Any]]
    answer: str
    choices: tuple[str, ...] = ()
    right: int = -1
    tools: list[dict[str, Any]] | None = None

    def document(self) -> Document:
        """The training document that would give the answer away."""
        if isinstance(self.prompt, str):
            return Document(prompt=self.prompt, completion=self.answer)
        return Document(messages=[*self.prompt, {"role": "assistant", "content": self.answer}])


def open_questions(config: EvaluationSetConfig, key: str) -> Source:
    """Find the files of a question set.

    Raises:
        UserError: a column is not named, or no file matches.
    """
    if config.metric == "choice" or config.messages_column is None:
        for option in _NEEDED[config.metric]:
            if getattr(config, option) is None:
                raise UserError(
                    f"is needed by metric `{config.metric}`", key=f"{key}.{option}", remedy="name the column"
                )
    source = open_source(SourceConfig(path=config.path, format=config.format), key)
    if source.kind == "tokens":
        raise UserError("holds ids, not questions", key=f"{key}.path", value=config.path)
    return source


def validate_questions(config: RunConfig) -> list[UserError]:
    """Everything wrong with question sets that the first question of each of their files tells."""
    errors: list[UserError] = []
    for name, asked_of in config.evaluation.sets.items():
        if asked_of.metric == "loss":
            continue
        try:
            source = open_questions(asked_of, f"evaluation.sets.{name}")
            if not any(next(asked(asked_of, source, file), None) for file in source.files[:CHECKED_FILES]):
                raise empty_source(source)
        except UserError as error:
            errors += user_errors(error)
    return errors


def asked(config: EvaluationSetConfig, source: Source, file: InputFile) -> Iterator[Asked]:
    """The questions of one file, in order; rows without an answer are left out.

    Raises:
        UserError: a column is missing or holds something else.
    """
    names = ["messages_column"] if config.messages_column else _NEEDED[config.metric]
    columns = {name: str(getattr(config, name)) for name in names}
    columns |= {"tools_column": TOOLS} if config.messages_column else {}
    kind = "arrow" if config.format == "hf" else config.format
    read = plain.reader(str(file_format(file.path)) if kind == "auto" else kind)
    for row in read(file.path, columns, source.key):
        found = _Row(file.path, source.key, row.place, dict(zip(columns, row.values, strict=True)))
        question = found.conversation() if config.messages_column else found.question(config.metric)
        if question is not None:
            yield question


@dataclass(frozen=True)
class _Row:
    file: str
    key: str
    place: str
    values: Mapping[str, Any]

    def conversation(self) -> Asked | None:
        value = self.values["messages_column"]
        found = messages(value, self.file, f"{self.key}.messages_column", self.place)
        if not found or role_of(found[-1]["role"]) != "assistant" or not found[-1]["content"].strip():
            return None
        return Asked(found[:-1], found[-1]["content"], tools=tools(self.values["tools_column"]))

    def question(self, metric: str) -> Asked | None:
        prompt, answer = self._text("prompt_column") or "", self.values["answer_column"]
        if answer is None:
            return None
        if metric == "exact_match":
            return Asked(prompt, str(answer)) if str(answer).strip() else None
        choices = self.values["choices_column"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise self._wrong("choices_column", "is not a list of two choices or more")
        texts = tuple(
            readers.text(choice, self.file, f"{self.key}.choices_column", self.place) or ""
            for choice in choices
        )
        if not all(texts):
            raise self._wrong("choices_column", "has an empty choice")
        right = self._right(answer, texts)
        return Asked(prompt, texts[right], texts, right)

    def _right(self, answer: Any, choices: tuple[str, ...]) -> int:
        """The answer's position: given as such, as its text, or as a letter."""
        if isinstance(answer, str) and answer in choices:
            return choices.index(answer)
        if isinstance(answer, str):
            place = string.ascii_uppercase.find(answer) if len(answer) == 1 else -1
            answer = int(answer) if answer.isdecimal() else place
        if isinstance(answer, int | np.integer) and 0 <= answer < len(choices):
            return int(answer)
        raise self._wrong("answer_column", f"names none of its {len(choices)} choices")

    def _text(self, option: str) -> str | None:
        return readers.text(self.values[option], self.file, f"{self.key}.{option}", self.place)

    def _wrong(self, option: str, problem: str) -> UserError:
        return UserError(
            f"{self.place} {problem}", file=self.file, key=f"{self.key}.{option}",
            value=self.values[option], remedy="mend the row, or name another column",
        )  # fmt: skip


def encode(question: Asked, config: EvaluationSetConfig, encoder: Encoder, seq_len: int) -> dict[str, Any]:
    """A question in ids, as plain values for JSON; long prompts lose their beginning.

    Raises:
        ChatError: the chat template does not take the prompt.
    """
    prompt = _prompt(question, config.chat, encoder)
    if config.metric == "exact_match":
        room = max(1, seq_len - config.max_new_tokens)
        return {"prompt": prompt[-room:].tolist(), "answer": question.answer}
    choices = [ids[: seq_len - 1] for ids in encoder.texts(list(question.choices))]
    return {
        "prompt": prompt[-(seq_len - max(map(len, choices))) :].tolist(),
        "choices": [ids.tolist() for ids in choices],
        "sizes": [len(text.encode()) for text in question.choices],
        "answer": question.right,
    }


def _prompt(question: Asked, chat: bool, encoder: Encoder) -> np.ndarray:
    prompt = question.prompt
    if isinstance(prompt, str) and not chat:
        ids: np.ndarray = encoder.texts([prompt])[0]
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = encoder.rendered(render(encoder, messages, prompt=True, tools=question.tools))[0]
    return ids if len(ids) else np.array([encoder.eos])


def check_template(config: EvaluationSetConfig, key: str, encoder: Encoder) -> None:
    """Refuse questions for a chat template that the tokenizer lacks.

    Raises:
        UserError: it has none.
    """
    if (config.chat or config.messages_column) and not encoder.tokenizer.chat_template:
        option = "messages_column" if config.messages_column else "chat"
        raise UserError(
            "the tokenizer has no chat template", key=f"{key}.{option}", value=getattr(config, option),
            remedy="use a tokenizer with one, or plain prompts",
        )  # fmt: skip


def encoded(
    config: EvaluationSetConfig, source: Source, encoder: Encoder, seq_len: int
) -> dict[int, tuple[Any, str]]:
    """All questions of a set in ids, and the words of each with its answer, by their digest, in the order of digests.

    Raises:
        UserError: the set is empty, or a row cannot be understood.
    """
    check_template(config, source.key, encoder)
    found: dict[int, tuple[Any, str]] = {}
    for file in source.files:
        for question in asked(config, source, file):
            try:
                words = (document := question.document()).words()
                found[document.digest(words)] = encode(question, config, encoder, seq_len), words
            except ChatError as error:
                raise UserError(
                    str(error),
                    file=file.path,
                    key=source.key,
                    remedy="mend the messages, or use plain prompts",
                ) from None
    if not found:
        raise empty_source(source)
    return dict(sorted(found.items()))


def questions_of(values: Mapping[str, Any]) -> Questions:
    """Questions as they were written: `metric`, `questions` and what the metric needs."""
    rows = values["questions"]
    if values["metric"] == "exact_match":
        return ExactSet(
            tuple(np.array(row["prompt"], np.int64) for row in rows),
            tuple(row["answer"] for row in rows),
            values["max_new_tokens"],
            tuple(values["stops"]),
            values["tokenizer"],
        )
    found = []
    for row in rows:
        ids = tuple(np.array(row["prompt"] + choice, np.int64) for choice in row["choices"])
        starts = (len(row["prompt"]),) * len(ids)
        found.append(Choice(ids, starts, tuple(row["sizes"]), row["answer"]))
    return ChoiceSet(tuple(found), values["length_normalised"])
