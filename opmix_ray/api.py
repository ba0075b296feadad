"""What the commands do, from Python: whole runs, single decisions, probes.

    import opmix_ray

    result = opmix_ray.run("opmix.yaml")
    decision = opmix_ray.search(model="checkpoint", domains={"web": "web.jsonl", "code": "code.jsonl"})
    probes = opmix_ray.train_probes("opmix.yaml")

A configuration is a file, a mapping as in such a file, or a `RunConfig`. Progress is shown in a notebook and in a
terminal. Ray is used where it is connected already; else one is started and ended again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from opmix_ray.cluster.connect import connected
from opmix_ray.commands.progress import progress_here
from opmix_ray.config import RunConfig, load_config, make_config, with_given
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError, Whole
from opmix_ray.model.base import join_base
from opmix_ray.model.interpolate import ProbeSet
from opmix_ray.runner import runner
from opmix_ray.runner.search import make_task, search_once
from opmix_ray.runner.validate import validate

Config = RunConfig | Mapping[str, Any] | str | Path


def run(
    config: Config,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | bool = True,
) -> dict[str, Any]:
    """Train a model and decide its mixture on the way.

    Args:
        config: what to do.
        output: directory or URI of the results; None: the configuration's.
        resume: the output must hold this configuration's unfinished or finished run, if anything.
        overwrite: remove a run that is already in the output.
        progress: whether to show it, or what receives it.

    Returns:
        The content of result.json: losses in nats per token, decisions, mixtures, costs.

    Raises:
        UserError: something in the configuration, the data or the output is wrong.
    """
    loaded = with_given(as_config(config), output=None if output is None else str(output))
    with _shown(progress) as shown:
        return runner.run(loaded, resume=resume, overwrite=overwrite, progress=shown, file=_file(config))


def search(
    *,
    model: str | Path,
    domains: Mapping[str, Any],
    mixture: str | Mapping[str, float] = "proportional",
    steps: int = 1000,
    batch_size: int = 16,
    seq_len: int = 1024,
    output: str | Path = "runs/search",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | bool = True,
) -> Decision:
    """Decide what a checkpoint should train on next.

    Args:
        model: Hugging Face directory or hub id.
        domains: name -> path of its files, or the keys of `DomainConfig`.
        mixture: shares of training tokens so far by domain, `proportional` to tokens, or `uniform`.
        steps: optimiser steps that the answer is meant for.
        batch_size: sequences in each.
        seq_len: tokens in a sequence.
        output: directory or URI of the results.
        settings: further keys of the configuration, dotted: `{"search.trials": 12, "probe.rank": 8}`.
        overwrite: remove what an earlier search left in the output.
        progress: whether to show it, or what receives it.

    Returns:
        The decision: `.mixture`, `.kept`, `.reason`, `.gain` in nats per token with its interval.

    Raises:
        UserError: something in the input is wrong.
    """
    sources = {
        name: dict(value) if isinstance(value, Mapping) else {"path": value}
        for name, value in domains.items()
    }
    tree: dict[str, Any] = {
        "name": "search",
        "output": str(output),
        "model": {"path": str(model)},
        "data": {"seq_len": seq_len, "domains": sources},
        "train": {"batch_size": batch_size},
        "stages": [
            {"name": "next", "steps": steps, "start": mixture if isinstance(mixture, str) else dict(mixture)}
        ],
    }
    for key, value in (settings or {}).items():
        _set(tree, key, value)
    with _shown(progress) as shown:
        return search_once(make_config(tree), None, overwrite=overwrite, progress=shown)


def train_probes(config: Config, *, model: str | Path | None = None) -> ProbeSet:
    """Train the LoRA probes of a decision about the first stage's domains.

    Args:
        config: data, model, probes.
        model: directory of a checkpoint; None: the configured model.

    Returns:
        Base weights and factors, for `Interpolator`.

    Raises:
        UserErrors: everything that is wrong with the configuration and the data.
    """
    loaded = as_config(config)
    lasting = ray.is_initialized()
    with connected(loaded):
        task = make_task(loaded, model=None if model is None else Path(model))
        base, factors = ray.get([task.base, task.factors])
        probes = join_base(factors, base)
        return probes if lasting else _own(probes)


def prepare(config: Config, *, progress: Progress | bool = True) -> Prepared:
    """Check a configuration and tokenise its data, or find it tokenised.

    Raises:
        UserErrors: everything that is wrong.
    """
    with _shown(progress) as shown:
        return validate(as_config(config), _file(config), shown.preparing)


def discover(
    files: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    domains: int | None = None,
    like: str | Path | None = None,
    vectors: str | Path | None = None,
    tokenizer: str | Path | None = None,
    seed: Whole = 0,
) -> dict[str, Any]:
    """Sort a pile of documents into domains: shards by domain, a page, and an opmix.yaml.

    Args:
        files: files, folders, globs, URIs of the pile; or one of them.
        output: local directory that is not there yet.
        domains: how many; None: eight, or those of `like`.
        like: output of an earlier call, into whose domains these documents are sorted.
        vectors: .npy file with a vector for each document, or a column with one, to go by instead of the text.
        tokenizer: that token ids were made with.
        seed: of everything random.

    Returns:
        The content of discover.json: `domains`, each with `name`, `words`, `documents`, `share`; `stability`; ...

    Raises:
        UserError: something in the input is wrong; nothing is written.
    """
    from opmix_ray.pile.make import discover as sort  # scikit-learn only where it is needed

    given = [files] if isinstance(files, str | Path) else files
    return sort(
        [str(file) for file in given],
        output,
        domains=domains,
        like=like,
        vectors=None if vectors is None else str(vectors),
        tokenizer=None if tokenizer is None else str(tokenizer),
        seed=seed,
    )


def as_config(config: Config) -> RunConfig:
    """The configuration that a file, a mapping or a `RunConfig` stands for.

    Raises:
        UserErrors: everything that is wrong with keys and values.
    """
    if isinstance(config, RunConfig):
        return config
    return make_config(config) if isinstance(config, Mapping) else load_config(config)


def _file(config: Config) -> Any:
    return config if isinstance(config, str | Path) else None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    node: Any = tree
    try:
        for section in sections:
            node = node[int(section)] if isinstance(node, list) else node.setdefault(section, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise UserError(
            "no such key", key="settings", value=key, remedy="see docs/configuration.md"
        ) from None


def _own(probes: ProbeSet) -> ProbeSet:
    """The same with arrays of this process, which outlive the object store."""

    def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in arrays.items()}

    return replace(
        probes,
        weights=copied(probes.weights),
        A=copied(probes.A),
        B=copied(probes.B),
        scale=probes.scale.copy(),
        data=probes.data.copy(),
    )


@contextmanager
def _shown(progress: Progress | bool) -> Iterator[Progress]:
    if isinstance(progress, Progress):
        yield progress
        return
    shown = progress_here() if progress else Progress()
    try:
        yield shown
    finally:
        shown.close()
