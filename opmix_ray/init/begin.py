"""`opmix init`: from files to a configuration that runs in the time given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from opmix_ray.config import (
    DataConfig,
    DomainConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
)
from opmix_ray.data.tokenizer import (
    Encoder,
    equal_parts,
    load_tokenizer,
    load_tokenizer_from,
    train_bpe,
    vocabulary_size,
)
from opmix_ray.errors import UserError, UserErrors, first_line, user_errors
from opmix_ray.init.discover import KEY, Part, discover, ignored, safe_name
from opmix_ray.init.inspect import FILES, TRIED, Domain, choose_columns, inspect_part, sample, without_bad
from opmix_ray.init.sizing import (
    Machine,
    Plan,
    Sequences,
    can_be_split,
    choose_sequences,
    make_plan,
    vocabulary,
)
from opmix_ray.init.write import TOKENIZER, relative, save, write_config
from opmix_ray.paths import file_format
from opmix_ray.remote import is_local
from opmix_ray.runner.forecast import Speed, measure, speed_left
from opmix_ray.sources.files import InputFile, copies_of
from opmix_ray.sources.source import ids_dtype, open_source, read_file

FILE = "opmix.yaml"
MOST_DOMAINS = 64
TASTED = 64  # documents of every file that are read
_WIDTH = "name the tokenizer that made them, or write them as .npy, which says how wide they are, or leave them out"
SHOWN = 8  # ignored files that are named
# ChatML, as https://huggingface.co/docs/transformers/chat_templating writes it; calls are written as Hermes has them.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n<tool_call>\n' + (call['function'] or call) | tojson + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPEED_TEST = 2048  # tokens in a timed step on CPUs


@dataclass(frozen=True)
class Begun:
    """What `begin` wrote, and why."""

    file: Path
    domains: list[dict[str, Any]]
    plan: Plan
    minutes: float


def begin(
    directory: Path,
    data: Sequence[str],
    *,
    minutes: float = 10.0,
    model: str | None = None,
    tokenizer: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Begun:
    """Look at the files and write `opmix.yaml` into a directory.

    Args:
        directory: made if it is not there.
        data: files, folders, globs, URIs.
        minutes: that the run may take on this machine.
        model: hub id or directory of a pretrained model; None: fresh weights of a size that fits.
        tokenizer: hub id, directory or tokenizer.json; None: the model's own, or one trained on the data.
        name: of the run; None: the directory's.
        overwrite: replace an `opmix.yaml` that is there.
        say: told what is done.

    Raises:
        UserError: there is nothing to train on, fewer than two domains, or a file that must not be replaced.
    """
    target = _check_target(directory, overwrite)
    domains = look_at(data, say)
    _check_domains(domains, data, tokenizer or model)
    domains = _of_known_width(domains, tokenizer or model, say)
    for domain in domains:
        say(
            f"found {domain.name}{_meant(domain)}: {domain.documents:,.0f} {domain.kind} documents in "
            f"{len(domain.part.files)} files{_taken(domain)}"
        )
    machine = Machine(os.cpu_count() or 1, torch.cuda.device_count())
    longest = None if model is None else _positions(model)
    sequences = choose_sequences(domains, minutes, machine, longest)
    sources = {d.name: DomainConfig(path=d.part.paths, **d.columns) for d in domains}  # type: ignore[arg-type]
    own, wanted = _tokenizer(domains, model, tokenizer)
    config = RunConfig.model_validate(
        {
            "model": ModelConfig(path=model) if model else ModelConfig(config={"model_type": "llama"}),
            "tokenizer": wanted,
            "data": DataConfig(
                domains=sources,
                seq_len=sequences.seq_len,
                eval_fraction=sequences.eval_fraction,
                cache=str(Path(DataConfig.model_fields["cache"].default).expanduser()),
            ),
            "stages": [{"name": "pretrain", "steps": 1}],
        }
    )
    if own is None:
        say(
            "loading the tokenizer" if wanted.train_vocab_size is None else "training a tokenizer on the data"
        )
    loaded = own or load_tokenizer(config)
    size = vocabulary_size(loaded)
    tokens = {domain.name: _tokens(domain, loaded, sequences) for domain in domains}
    say("measuring how fast this machine trains")
    plan = make_plan(
        minutes,
        len(domains),
        sum(tokens.values()),
        sequences.seq_len,
        machine,
        partial(_measure, model, size, sequences.seq_len, machine),
        vocab_size=size,
        fresh=model is None,
    )
    named: str | int | None = _seen_from(target.parent, tokenizer) or wanted.train_vocab_size
    text = write_config(
        safe_name(name or target.parent.absolute().name),
        target.parent,
        domains,
        plan,
        sequences,
        machine,
        minutes,
        model=_seen_from(target.parent, model),
        tokenizer=TOKENIZER if own is not None else named,
    )
    save(target, text, own)
    rows = [
        {
            "domain": domain.name,
            "files": len(domain.part.files),
            "kind": domain.kind,
            "documents": round(domain.documents),
            "tokens": round(tokens[domain.name]),
        }
        for domain in domains
    ]
    return Begun(target, rows, plan, minutes)


def look_at(data: Sequence[str], say: Callable[[str], None]) -> list[Domain]:
    """What the files hold; those that cannot be used are named and left out, in one go.

    Raises:
        UserErrors: fewer than two domains are left.
    """
    domains: list[Domain] = []
    errors: list[UserError] = []
    parts = discover(data)
    by_length = sorted(parts, key=lambda part: len(part.files[0].path))  # `a copy.txt` is the copy
    copies = copies_of(file for part in by_length for file in part.files)
    lost: dict[int, Part] = {}  # by the error that says why
    for part in parts:
        try:
            domain, bad = _inspected(part, copies)
            errors += bad
            domains.append(_large_enough(domain))
        except UserError as error:
            errors += user_errors(error)
            lost[id(errors[-1])] = part
    if errors and len(domains) < 2:
        raise UserErrors(errors)
    for each in errors:
        whole = lost.get(id(each))
        many = f" {len(whole.files)} files, all of {whole.name}:" if whole and len(whole.files) > 1 else ""
        say(f"left out:{many} {each}")
    if names := [path for part in parts for path in part.left_out]:
        say(f"left out, as held-out splits beside what is trained on: {_some(names)}")
    if names := ignored(data, parts):
        say(
            f"ignored, as made here, models, hidden, about data, there twice, small or of another kind: {_some(names)}"
        )
    return domains


def _inspected(part: Part, copies: Mapping[str, str]) -> tuple[Domain, list[UserError]]:
    """What a domain holds without the files that cannot be read as the others of it, and an error for each of these.

    Raises:
        UserErrors: none is left, or what is wrong is no single file.
    """
    good, errors = without_bad(part, copies)
    good, odd = _of_one_kind(good)
    good, unfit, columns = _alike(good)
    errors += odd + unfit
    while True:
        try:
            domain = inspect_part(good)
            unlike = _unfit(good, domain.columns) if domain.columns != columns else {}
        except UserError as error:
            unlike = {error.file or "": error}
        rest = [file for file in good.files if file.path not in unlike]
        if unlike and (columns is None or len(rest) in (0, len(good.files))):
            raise UserErrors([*errors, *(each for error in unlike.values() for each in user_errors(error))])
        if not unlike:
            return domain, errors
        errors += map(_of_file, unlike.values())
        good = _with(good, rest)


def _with(part: Part, files: list[InputFile]) -> Part:
    return replace(part, paths=[file.path for file in files], files=files)


def _of_file(error: UserError) -> UserError:
    """What is wrong with one file of a domain, whose columns are not the user's to set here."""
    column = str(error.key).endswith("_column")
    remedy = "write it as the domain's other files are, or leave it out" if column else error.remedy
    return UserError(error.problem, file=error.file, key=KEY, remedy=remedy)


def _of_one_kind(part: Part) -> tuple[Part, list[UserError]]:
    """A domain without its files of ids, or without all others, whichever are fewer."""
    ids = [file for file in part.files if file_format(file.path) == "tokens"]
    rows = [file for file in part.files if file not in ids]
    if not ids or not rows:
        return part, []
    kept, out = (rows, ids) if len(rows) >= len(ids) else (ids, rows)
    problem = "holds token ids, among files of rows" if out is ids else "holds rows, among files of token ids"
    return _with(part, kept), [
        UserError(problem, file=file.path, key=KEY, remedy="make it a domain of its own") for file in out
    ]


def _alike(part: Part) -> tuple[Part, list[UserError], dict[str, str] | None]:
    """A domain without the files that do not have the columns of most, an error for each of these, and the columns.

    These are None where no file has any.
    """
    if len(part.files) == 1 or file_format(part.files[0].path) == "tokens":
        return part, [], {}
    best: tuple[float, dict[str, UserError], dict[str, str]] | None = None
    tried: list[dict[str, str]] = []
    for columns in _choices(part.files):
        if columns not in tried:
            tried.append(columns)
            unfit = _unfit(part, columns)
            size = sum(file.size for file in part.files if file.path in unfit)
            best = (size, unfit, columns) if best is None or size < best[0] else best
        if best and not best[1]:
            break
    if best is None or len(best[1]) == len(part.files):
        return part, [], None
    _, unfit, columns = best
    kept = _with(part, [file for file in part.files if file.path not in unfit]) if unfit else part
    return kept, [_of_file(error) for error in unfit.values()], columns


def _choices(files: Sequence[InputFile]) -> Iterator[dict[str, str]]:
    """Columns that files may have: those of a few together, then those of each of some more."""

    def spread(many: int) -> list[InputFile]:
        return [files[round(i)] for i in np.linspace(0, len(files) - 1, min(many, len(files)))]

    for some in (spread(FILES), *([file] for file in spread(4 * FILES))):
        with suppress(UserError):
            yield choose_columns([row for file in some for row in sample(file).rows], some[0].path)


def _unfit(part: Part, columns: dict[str, str]) -> dict[str, UserError]:
    """Files whose first documents cannot be read by these columns; of those far away only some are read."""
    found: dict[str, UserError] = {}
    for number, file in enumerate(part.files):
        if number < TRIED or is_local(file.path):
            try:
                one = SourceConfig(path=file.path, **columns)  # type: ignore[arg-type]
                source = open_source(one, f"{KEY}.{part.name}")
                for _ in islice(read_file(source, source.files[0]), TASTED):
                    pass
            except UserError as error:
                found[file.path] = user_errors(error)[0]
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _large_enough(domain: Domain) -> Domain:
    if not can_be_split(domain):
        raise UserError(
            f"holds {domain.size:,.0f} characters or ids, too few to hold some out",
            file=domain.part.paths[0], key=KEY, remedy="add data, or leave it out",
        )  # fmt: skip
    return domain


def _of_known_width(
    domains: Sequence[Domain], tokenizer: str | None, say: Callable[[str], None]
) -> list[Domain]:
    """Domains without raw files of ids that cannot be told to be the tokenizer's.

    Raises:
        UserErrors: fewer than two domains are left.
    """
    kept: list[Domain] = []
    errors: list[UserError] = []
    size: int | None = None
    for domain in domains:
        if domain.kind != "tokens" or domain.columns or tokenizer is None:
            kept.append(domain)
            continue
        size = size or vocabulary_size(load_tokenizer_from(tokenizer))
        good: list[InputFile] = []
        for file in domain.part.files:
            try:
                found = open_source(SourceConfig(path=file.path), KEY, vocabulary=size)
                if not found.companions:
                    ids_dtype(found, file)
                good.append(file)
            except UserError as error:
                errors.append(UserError(error.problem, file=file.path, key=KEY, remedy=_WIDTH))
        try:
            if 0 < len(good) < len(domain.part.files):
                domain = _large_enough(inspect_part(_with(domain.part, good)))
            kept += [domain] if good else []
        except UserError as error:
            errors.append(error)
    if errors and len(kept) < 2:
        raise UserErrors(errors)
    for each in errors:
        say(f"left out: {each}")
    return kept


def _meant(domain: Domain) -> str:
    """Where a domain's files are, if letters of their names are lost in its own."""
    base = domain.part.paths[0].rstrip("/").rpartition("/")[2]
    return "" if base.isascii() else f" ({base})"


def _taken(domain: Domain) -> str:
    """Which columns are trained on, where others hold text too."""
    if not domain.beside:
        return ""
    taken, beside = (
        ", ".join(f"`{name}`" for name in names) for names in (domain.columns.values(), domain.beside)
    )
    return f"; trained on: {taken}; not on: {beside}"


def _check_target(directory: Path, overwrite: bool) -> Path:
    if directory.exists() and not directory.is_dir():
        raise UserError(
            "is a file", key="DIR", value=directory, remedy="name a directory for the configuration first"
        )
    target = directory / FILE
    if target.exists() and not overwrite:
        raise UserError("is there already", file=target, remedy="use --overwrite, or name another directory")
    return target


def _seen_from(directory: Path, path: str | None) -> str | None:
    """A local path as a file in `directory` names it; a hub id stays as it is."""
    if path is None or not Path(path).expanduser().exists():
        return path
    return relative(path, directory)


def _check_domains(domains: Sequence[Domain], data: Sequence[str], tokenizer: str | None) -> None:
    if len(domains) < 2:
        raise UserError(
            f"holds one domain ({domains[0].name}), and a mixture needs at least two",
            key=KEY,
            value=" ".join(data),
            remedy="give a file or a sub-folder for each kind of data, or sort it into domains with `opmix discover`",
        )
    if len(domains) > MOST_DOMAINS:
        raise UserError(
            f"holds {len(domains)} domains, and a decision trains a probe for each",
            key=KEY,
            value=" ".join(data),
            remedy=f"put what belongs together into sub-folders, {MOST_DOMAINS} at most",
        )
    if tokenizer is None and (ids := next((d for d in domains if d.kind == "tokens"), None)):
        raise UserError(
            "holds token ids, whose tokenizer has to be known",
            key=KEY,
            value=ids.part.paths[0],
            remedy="name it with --tokenizer, or its model with --model",
        )


def _positions(model: str) -> int | None:
    try:
        found = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot be read as a model: {first_line(error)}",
            key="--model",
            value=model,
            remedy="give a directory with config.json and weights, or a hub id that this machine can reach",
        ) from None
    return getattr(found.get_text_config(), "max_position_embeddings", None)


def _tokenizer(
    domains: Sequence[Domain], model: str | None, tokenizer: str | None
) -> tuple[PreTrainedTokenizerFast | None, TokenizerConfig]:
    """A tokenizer made here, or None; and what the configuration says."""
    if tokenizer or model:
        return None, TokenizerConfig(path=tokenizer)
    size = vocabulary(sum(domain.size for domain in domains))
    if all(domain.kind != "messages" for domain in domains):
        return None, TokenizerConfig(train_vocab_size=size)
    texts = [domain.texts for domain in domains]
    made = train_bpe(equal_parts(texts, max(sum(map(len, each)) for each in texts)), size)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT_TEMPLATE
    return made, TokenizerConfig()


def _tokens(domain: Domain, tokenizer: PreTrainedTokenizerFast, sequences: Sequences) -> float:
    """Training tokens of a domain, from the tokens that its sample becomes."""
    _, size = domain.held_out(sequences.eval_fraction, sequences.seq_len)
    if domain.kind == "tokens":
        return size
    pieces = Encoder(tokenizer).texts(domain.texts)
    characters = sum(len(text) for text in domain.texts)
    each = (sum(len(ids) for ids in pieces) + len(pieces)) / max(1, characters)
    if not domain.whole:
        return size * each
    one = domain.size / max(1.0, domain.documents)
    # None is cut, and the rest of a sequence is padding.
    together = max(1, int(sequences.seq_len / (one * each)))
    return size / one / together * sequences.seq_len


def _measure(
    pretrained: str | None, vocab_size: int, seq_len: int, machine: Machine, model: dict[str, Any] | None
) -> Speed:
    """The speed that a run has with a model in the largest batch that fits."""
    config = ModelConfig(config=model) if model is not None else ModelConfig(path=pretrained)
    batch = max(1, (SPEED_TEST * 8 if machine.gpus else SPEED_TEST) // seq_len)
    while True:
        try:
            found = measure(
                config, vocab_size=vocab_size, seq_len=seq_len, batch_size=batch, device=machine.device,
                threads=None if machine.gpus else machine.cpus,  # as the run's worker
            )  # fmt: skip
            left = 1.0 if machine.gpus else speed_left(machine.cpus)
            return replace(found, tokens_per_second=left * found.tokens_per_second)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise UserError(
                    "does not fit into the GPU's memory",
                    key="--model",
                    value=pretrained or "of a size chosen here",
                    remedy="name a smaller one",
                ) from None
            batch //= 2
            torch.cuda.empty_cache()
