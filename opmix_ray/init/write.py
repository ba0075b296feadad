"""A configuration as commented YAML, from what was found and planned."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast

from opmix_ray.config import load_config
from opmix_ray.errors import UserError
from opmix_ray.init.inspect import Domain
from opmix_ray.init.sizing import MAX_EPOCHS, REPORTED, Machine, Plan, Sequences
from opmix_ray.paths import is_uri
from opmix_ray.runner.validate import check_before, refuse

TOKENIZER = "tokenizer"  # beside the file, where one had to be made for chat messages
COLUMN = 32  # of comments
_COMMENT = re.compile(r"(\s*[^#\s][^#]*?)\s{2,}(# .*)$")
_PLAIN = re.compile(r"[\w./~*-]+$", re.ASCII)


def write_config(
    name: str,
    directory: Path,
    domains: Sequence[Domain],
    plan: Plan,
    sequences: Sequences,
    machine: Machine,
    minutes: float,
    *,
    model: str | None,
    tokenizer: str | int | None,
) -> str:
    """The text of the file.

    Args:
        name: of the run.
        directory: that the file will lie in; paths below it are written relative to it.
        domains: what was found.
        plan: model, steps, cost of decisions.
        sequences: length and split.
        machine: that it was planned for.
        minutes: asked for.
        model: of a pretrained model; None: fresh weights.
        tokenizer: its path; a number: entries of one to be trained; None: the model's own.
    """
    device = (
        f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}"
        if machine.gpus
        else f"{machine.cpus} CPU cores"
    )
    epochs = plan.tokens / max(1.0, plan.available)
    limit = (
        f"The data end it sooner than the {minutes:g} minutes asked for: more steps would only repeat them."
        if plan.by == "data"
        else f"Planned for {minutes:g} minutes."
    )
    lines = [
        f"# Written by `opmix init` for {len(domains)} domains and a machine with {device}.",
        f"# {limit}",
        f"# About {_time(plan.seconds)} in all, {plan.tokens:,} tokens, {epochs:.1f} times the data. Every key:",
        "# docs/configuration.md. Check changes with `opmix validate`, then `opmix run` this file.",
        f"name: {name}",
        "seed: 0",
        "",
        *_model(plan, model),
        "",
        *_tokenizer(tokenizer),
        "data:",
        f"  seq_len: {sequences.seq_len}  # tokens in a sequence",
        f"  eval_fraction: {sequences.eval_fraction}  # of the documents, held out of training",
        "  domains:  # the mixture is shared out among these",
        *_domains(domains, directory),
        "",
        "train:",
        f"  batch_size: {plan.batch_size}  # sequences in a step",
        *_resources(machine),
        f"  optimizer: {{learning_rate: {plan.learning_rate:g}}}",
        f"  checkpoint_every: {max(10, plan.steps // 4)}  # a run that is killed goes on from the last one",
        f"  log_every: {max(1, min(20, plan.steps // 20))}",
        "",
        "stages:",
        "  - name: " + ("pretrain" if model is None else "continue"),
        f"    steps: {plan.steps}  # the time a run takes is nearly in proportion",
        "    start: proportional  # before the first decision: by the tokens each domain has",
        f"    decide_at: {plan.decide_at}  # decided before any step, and again after these parts of them",
        "",
        "# A decision counts what each mixture would teach. Where the budget pays for it, it also trains short LoRA",
        "# probes, one per domain, and scores candidates with them. It takes the mixture of least expected regret.",
        f"probe: {{{_probe_resources(machine, len(domains))}}}",
        f"search: {{budget: {plan.budget}, {_search_resources(machine)}}}  # "
        + (
            "at most this part of the FLOPs"
            if plan.budget
            else "no probes: the run is too short to wait for them"
        ),
        f"evaluation: {{sequences: {REPORTED}}}  # held-out sequences of each domain in reports",
    ]
    return "\n".join(map(_aligned, lines)) + "\n"


def _aligned(line: str) -> str:
    """A line with its comment, if it has one at its end, where the comments of others are."""
    found = _COMMENT.match(line)
    return f"{found[1]:<{COLUMN - 2}}  {found[2]}" if found else line


def _model(plan: Plan, model: str | None) -> list[str]:
    size = f"{plan.weights / 1e6:.1f} million weights beside the embedding"
    if model is not None:
        return [f"model: {{path: {_text(model)}}}  # {size}"]
    assert plan.model is not None
    tokens = f"{plan.tokens / plan.weights:.0f} tokens each"
    lines = ["model:", f"  config:  # fresh weights: {size}, {tokens}"]
    return lines + [f"    {key}: {_text(value)}" for key, value in plan.model.items()]


def _tokenizer(tokenizer: str | int | None) -> list[str]:
    if tokenizer is None:
        return []
    if isinstance(tokenizer, int):
        return [
            f"tokenizer: {{train_vocab_size: {tokenizer}}}  # a byte-level BPE, trained on the domains",
            "",
        ]
    return [f"tokenizer: {{path: {_text(tokenizer)}}}", ""]


def _domains(domains: Sequence[Domain], directory: Path) -> list[str]:
    lines = []
    for domain in domains:
        paths = [relative(path, directory) for path in domain.part.paths]
        entries: dict[str, Any] = {"path": paths[0] if len(paths) == 1 else paths, **domain.columns}
        if entries.get("text_column") == "text":
            del entries["text_column"]
        entries["max_epochs"] = MAX_EPOCHS
        lines += [f"    {domain.name}:  # {_amount(domain)}"]
        lines += [f"      {key}: {_text(value)}" for key, value in entries.items()]
        if domain.beside:
            lines.append(f"      # columns with text that is not trained on: {', '.join(domain.beside)}")
        if domain.part.left_out:
            names = ", ".join(relative(path, directory) for path in domain.part.left_out[:3])
            lines.append(f"      # left out as held-out splits (`evaluation.sets` can take them): {names}")
    return lines


def _amount(domain: Domain) -> str:
    if domain.kind == "tokens" and not domain.documents:
        return f"{domain.size:,.0f} token ids"
    unit = "token ids" if domain.kind == "tokens" else "characters"
    about = "" if len(domain.draws) else "about "
    what = {"text": "documents", "prompt": "pairs", "messages": "conversations", "tokens": "documents"}[
        domain.kind
    ]
    return f"{about}{domain.documents:,.0f} {what}, {domain.size:,.0f} {unit}"


def relative(path: str, directory: Path) -> str:
    """A path as the configuration in `directory` names it: relative where it lies below, else absolute."""
    if is_uri(path):
        return path
    whole = os.path.abspath(os.path.expanduser(path))
    inside = os.path.relpath(whole, directory.absolute())
    return whole if inside.startswith("..") else inside


def _resources(machine: Machine) -> list[str]:
    if machine.gpus:
        return [f"  workers: {machine.gpus}", "  gpus_per_worker: 1"]
    return [f"  cpus_per_worker: {machine.cpus}  # of this machine; lower it where others work too"]


def _probe_resources(machine: Machine, domains: int) -> str:
    if machine.gpus:
        return f"gpus: {1 if machine.gpus > 1 else 0.5:g}"
    return f"cpus: {max(1, machine.cpus // domains)}"


def _search_resources(machine: Machine) -> str:
    if machine.gpus:
        return f"evaluators: {min(4, 2 * machine.gpus)}, gpus: {0.5 if machine.gpus == 1 else 1:g}"
    evaluators = min(4, machine.cpus)
    return f"evaluators: {evaluators}, cpus: {machine.cpus // evaluators}"


def _text(value: Any) -> str:
    """A value as YAML: as it is where YAML reads it back so, else as JSON, which YAML is too."""
    if isinstance(value, str) and _PLAIN.match(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def save(target: Path, text: str, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Put the file in place once it has been read back and found right, with the tokenizer beside it."""
    beside = target.parent / TOKENIZER
    if tokenizer is not None and beside.exists() and not target.exists():
        raise UserError("is there already", file=beside, remedy="name another directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", file=target, remedy="name another directory"
        ) from None
    try:
        if tokenizer is not None:
            tokenizer.save_pretrained(str(beside))
        refuse(check_before(load_config(part)))
        os.replace(part, target)
    except UserError:
        if tokenizer is not None and not target.exists():
            shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        part.unlink(missing_ok=True)
