"""Everything wrong with a run that can be known before it begins, in one list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import AutoConfig

from opmix_ray.config import ModelConfig, RunConfig
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.sources import validate_sources
from opmix_ray.data.tokenizer import load_tokenizer, vocabulary_size
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.mixture import Mixture
from opmix_ray.run.plan import check_plan, stage_domains, start_mixture
from opmix_ray.search.components import Components
from opmix_ray.search.space import choose_components, load_space, read_space
from opmix_ray.train.probes import probe_data


def check_before(config: RunConfig, file: Any = None) -> list[UserError]:
    """What configuration, files, tokenizer and model show without reading all data."""
    errors = check_plan(config, file)
    errors += validate_sources(config)
    for check in (_tokenizer_and_model, _spaces):
        if not errors or check is _tokenizer_and_model:
            errors += _collected(lambda check=check: check(config))  # type: ignore[misc]
    return errors


def check_prepared(config: RunConfig, prepared: Prepared) -> list[UserError]:
    """What the number of tokens shows: sizes, repetition caps."""
    errors: list[UserError] = []
    tokens = {name: domain.train_tokens for name, domain in prepared.domains.items()}
    previous: Mixture | None = None
    used = dict.fromkeys(tokens, 0.0)
    for position, stage in enumerate(config.stages):
        names = stage_domains(config, stage)
        sequences = sum(prepared.domains[name].train_sequences for name in names)
        if sequences < config.train.batch_size:
            errors.append(
                UserError(
                    f"its domains have {sequences} sequences of {prepared.seq_len} tokens, fewer than one batch",
                    key=f"stages.{position}",
                    value=stage.name,
                    remedy=f"lower train.batch_size ({config.train.batch_size}) or data.seq_len, or add data",
                )
            )
        try:
            previous, _ = start_mixture(config, stage, previous, tokens, used, prepared.seq_len)
        except UserError as error:
            error_here = UserError(
                error.problem,
                key=f"stages.{position}: {error.key or ''}",
                value=error.value,
                remedy=error.remedy,
            )
            errors.append(error_here)
            continue
        length = stage.steps * config.train.batch_size * prepared.seq_len
        for name, share in previous.items():
            used[name] += share * length
    return errors


def validate(
    config: RunConfig, file: Any = None, on_progress: Callable[[str, int, int], None] | None = None
) -> Prepared:
    """Check a run and prepare its data.

    Raises:
        UserErrors: everything that is wrong.
    """
    errors = check_before(config, file)
    if errors:
        raise UserErrors(errors)
    prepared = prepare(config, on_progress=on_progress)
    errors = check_prepared(config, prepared)
    if errors:
        raise UserErrors(errors)
    return prepared


def _collected(check: Callable[[], None]) -> list[UserError]:
    try:
        check()
    except UserErrors as errors:
        return errors.errors
    except UserError as error:
        return [error]
    return []


def _tokenizer_and_model(config: RunConfig) -> None:
    if config.tokenizer.train_vocab_size is not None:
        size = config.tokenizer.train_vocab_size
    else:
        size = vocabulary_size(load_tokenizer(config))
    rows = _embedding_rows(config.model)
    if rows is not None and rows < size:
        raise UserError(
            f"its embedding has {rows} rows, the tokenizer {size} tokens",
            key="model.path",
            value=config.model.path,
            remedy="use the model's own tokenizer (leave tokenizer.path out)",
        )


def _embedding_rows(model: ModelConfig) -> int | None:
    """Rows of a pretrained model's embedding, from its configuration alone; None where that is not known."""
    if (model.path is None) == (model.config is None):
        raise UserError(
            "needs either `path` or `config`",
            key="model",
            remedy="give `model.path` for a pretrained model or `model.config` for fresh weights",
        )
    if model.path is None or model.gguf_file is not None:
        return None
    try:
        found = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot be read as a model: {str(error).splitlines()[0]}",
            key="model.path",
            value=model.path,
            remedy="give a directory with config.json and weights, or a hub id that this machine can reach",
        ) from None
    return getattr(found.get_text_config(), "vocab_size", None)


def _spaces(config: RunConfig) -> None:
    """Build every decision's search space once, on the mixture its stage begins with."""
    current: Mixture | None = None
    for stage in config.stages:
        names = stage_domains(config, stage)
        if isinstance(stage.start, dict):
            here = Mixture(stage.start).over(names)
        elif stage.start == "carry" and current is not None and any(current.get(n, 0) > 0 for n in names):
            here = current.over(names)
        else:
            here = Mixture.uniform(names)
        if stage.decide_at:
            space = stage.search_space or config.search.space
            components = choose_components(read_space(space)[0].kind, here, names)
            data = [probe_data(name, here, config.probe.new_share).array(names) for name in components]
            load_space(
                space, Components(tuple(components), tuple(names), np.array(data)), config.data.domains
            )
        current = here
