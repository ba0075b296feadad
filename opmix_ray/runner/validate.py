"""Everything wrong with a run that can be known before it begins, in one list."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoConfig

from opmix_ray.cluster.connect import check_cluster, check_processors
from opmix_ray.config import ModelConfig, RunConfig
from opmix_ray.config.run import with_slopes
from opmix_ray.data.lineage import Origin, follow
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.questions import validate_questions
from opmix_ray.data.tokenizer import load_tokenizer, vocabulary_size
from opmix_ray.decision.old_part import choose_components
from opmix_ray.decision.task import least_losses
from opmix_ray.errors import UserError, UserErrors, first_line, user_errors
from opmix_ray.harmless import HIDDEN, placeholders
from opmix_ray.laws.fit import LEAST_ROWS
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import architecture
from opmix_ray.model.load import load_model
from opmix_ray.model.spread import check_spread
from opmix_ray.paths import existing, is_uri
from opmix_ray.remote import refuse_credentials
from opmix_ray.runner.base import beginning, resolved, start_stage
from opmix_ray.runner.check_plan import check_plan, oddities
from opmix_ray.runner.forecast import estimate
from opmix_ray.runner.harness import check_harness
from opmix_ray.runner.plan import decision_points, space_of, stage_domains, total_steps, wanted_mixture
from opmix_ray.runner.trial import try_model, try_probes
from opmix_ray.sources.files import copies_of
from opmix_ray.sources.source import open_source, validate_sources
from opmix_ray.trials.space import Space, load_space, read_space

_WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth")
REACH = 0.6  # of the n-gram model's loss: lower than any model of a run as long has come
_MODEL_REMEDY = "give a directory with config.json and weights, or a hub id that this machine can reach"


def check_before(config: RunConfig, file: Any = None) -> list[UserError]:
    """What configuration, files, tokenizer and model show without reading all data."""
    plan = check_uris(config) + check_plan(config, file)
    errors = plan + validate_sources(config) + validate_questions(config) + check_places(config)
    if not errors:
        errors += shared_files(config)
    errors += check_harness(config.evaluation.harness)
    named = any((error.key or "").startswith(("model", "tokenizer")) for error in plan)
    if not named and (config.tokenizer.train_vocab_size is None or not errors):
        errors += _collected(lambda: _tokenizer_and_model(config))
    if not plan:
        errors += _collected(lambda: spaces(config))
    return [error.within(file) for error in errors] if file is not None else errors


def check_all(
    config: RunConfig, file: Any = None, on_progress: Callable[[str, int, int], None] | None = None
) -> list[UserError]:
    """Everything wrong in one go: configuration, files, sizes, and what the cluster does not have.

    Args:
        config: the run.
        file: its file, for errors.
        on_progress: see `prepare`.
    """
    return _collected(lambda: examine(config, file, on_progress))


def examine(
    config: RunConfig,
    file: Any = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    *,
    wrong: bool = False,
) -> dict[str, Any]:
    """Look for everything that `check_all` names, and forecast a run without such faults.

    Nothing is tokenised before configuration, files, tokenizer, model and cluster are found right.

    Args:
        config: the run.
        file: that it is from.
        on_progress: told how far the data are prepared.
        wrong: whether something in the file is known to be wrong already, so that nothing is tokenised or forecast.

    Returns:
        `cost`: see `runner.forecast.estimate`; `warnings`: a line for each thing that is odd but may be meant.

    Raises:
        UserErrors: everything that is wrong.
    """
    with resolved(config) as run:
        config = run.config
        refuse(check_before(config, file) + check_cluster(config) + check_processors(config))
        if wrong:
            return {}
        prepared, errors = _prepared(config, on_progress)
        refuse(errors if prepared is None else check_prepared(config, prepared))
        assert prepared is not None
        return {"cost": estimate(config, prepared), "warnings": oddities(config) + copies(config)}


def check_prepared(config: RunConfig, prepared: Prepared) -> list[UserError]:
    """What the prepared data show: sizes, repetition caps, bytes where the objective counts them."""
    errors: list[UserError] = _collected(lambda: config.objective_of(prepared.bytes_per_token))
    errors += check_limits(config, prepared)
    first = before = beginning(config)
    for position, stage in enumerate(config.stages):
        names = stage_domains(config, stage)
        sequences = sum(prepared.domains[name].train_sequences for name in names)
        if sequences < config.train.batch_size:
            errors.append(
                UserError(
                    f"its domains have {sequences} sequences of {prepared.seq_len} tokens, fewer than one batch of "
                    f"{config.train.batch_size}",
                    key=f"stages.{position}",
                    value=stage.name,
                    remedy="lower train.batch_size or data.seq_len, or add data",
                )
            )
            continue
        try:
            start = start_stage(config, position, first if stage.restart else before, prepared)
        except UserError as error:
            errors.append(
                UserError(
                    error.problem,
                    key=": ".join(part for part in (f"stages.{position}", error.key) if part),
                    value=error.value,
                    remedy=error.remedy,
                )
            )
            continue
        before = start.after(stage.steps * config.train.batch_size)
    return errors


def check_limits(config: RunConfig, prepared: Prepared) -> list[UserError]:
    """Limits that no mixture of this run reaches, for a model that has learned nothing yet."""
    model = config.model
    fresh = model.config is not None and model.path is None
    limits = {name: limit.nats for name, limit in config.limits().items() if limit.nats is not None}
    if not limits or not fresh:
        return []
    domains = list(dict.fromkeys(name for stage in config.stages for name in stage_domains(config, stage)))
    tokens = float(total_steps(config) * config.train.batch_size * prepared.seq_len)
    least = least_losses(prepared, limits, domains, tokens)
    return [
        UserError(
            f"no mixture gets there: counting says that {tokens:,.0f} tokens of the best one lead to about "
            f"{least[name]:.2f} nats per token",
            key=f"evaluation.limits.{name}",
            value=most,
            remedy='raise it, train longer, or write "now"',
        )
        for name, most in limits.items()
        if name in least and most < REACH * least[name]
    ]


def validate(
    config: RunConfig, file: Any = None, on_progress: Callable[[str, int, int], None] | None = None
) -> Prepared:
    """Check a run and prepare its data.

    Raises:
        UserErrors: everything that is wrong.
    """
    with resolved(config) as run:
        refuse(check_before(run.config, file))
        return prepare_checked(run.config, on_progress)


def prepare_checked(
    config: RunConfig, on_progress: Callable[[str, int, int], None] | None = None
) -> Prepared:
    """Prepare a run's data and check its sizes.

    Raises:
        UserErrors: everything that is wrong.
    """
    prepared = prepare(config, on_progress=on_progress)
    refuse(check_prepared(config, prepared))
    return prepared


def check_uris(config: RunConfig) -> list[UserError]:
    """An error for each place to write to whose URI carries credentials, and for each secret that is a placeholder.

    Sources tell it when they are opened.
    """
    errors = []
    for key, uri in (("output", config.output_uri()), ("data.cache", config.data.cache)):
        try:
            refuse_credentials(uri, key=key)
        except UserError as error:
            errors.append(error)
    errors += [
        UserError(
            "was hidden when this file was written",
            key=key,
            value=HIDDEN,
            remedy="put the real value in its place, or leave it out and set the variable that its program reads",
        )
        for key in placeholders(config.watch.model_dump(mode="json"), "watch")
    ]
    return errors


def check_places(config: RunConfig) -> list[UserError]:
    """An error for each local place to write to that cannot be written; nothing stays behind.

    URIs are told by the storage itself, once something is written there.
    """
    errors = []
    for key, place in (("output", config.output_uri()), ("data.cache", config.data.cache)):
        if is_uri(place):
            continue
        path = there = Path(os.path.expanduser(place)).absolute()
        try:
            if path.exists() and not path.is_dir():
                errors.append(UserError("is a file", key=key, value=place, remedy="name a directory"))
                continue
            there = existing(path)
            os.rmdir(tempfile.mkdtemp(prefix=".opmix-", dir=there))
        except OSError as error:
            problem = f"cannot be written: {error.strerror} in {there}"
            errors.append(UserError(problem, key=key, value=place, remedy="name another directory"))
    return errors


def shared_files(config: RunConfig) -> list[UserError]:
    """An error for each domain that reads a file in the same way as another one."""
    errors: list[UserError] = []
    seen: dict[tuple[str, str], str] = {}
    for name, source in config.data.domains.items():
        try:
            found = open_source(source, f"data.domains.{name}")
        except UserError:
            continue  # told already
        for file in found.files:
            path = file.path if is_uri(file.path) else os.path.realpath(file.path)
            other = seen.setdefault((path, found.recipe()), name)
            if other != name:
                errors.append(
                    UserError(
                        f"is read by the domain {other} too",
                        key=f"data.domains.{name}.path",
                        value=file.path,
                        remedy="give each domain files of its own, or leave one of the two out",
                    )
                )
                break
    return errors


def copies(config: RunConfig) -> list[str]:
    """A line for each file with the same bytes as another one under another name; its text counts twice."""
    files = [
        (f"data.domains.{name}", file)
        for name, source in config.data.domains.items()
        for file in open_source(source, f"data.domains.{name}").files
    ]
    others = copies_of(file for _, file in files)
    return [
        f"{key}.path: {file.path} holds the same bytes as {others[file.path]}; its text counts twice"
        for key, file in files
        if file.path in others
    ]


def refuse(errors: list[UserError]) -> None:
    """Raise all errors together, if there are any."""
    if errors:
        raise UserErrors(errors)


def _collected(check: Callable[[], Any]) -> list[UserError]:
    try:
        check()
    except UserError as error:
        return user_errors(error)
    return []


def _prepared(
    config: RunConfig, on_progress: Callable[[str, int, int], None] | None
) -> tuple[Prepared | None, list[UserError]]:
    """All data, or what is wrong with each domain of it."""
    try:
        return prepare(config, on_progress=on_progress), []
    except UserError as error:
        if isinstance(error, UserErrors) or config.tokenizer.train_vocab_size is not None:
            return None, user_errors(error)
        first = error
    found: dict[str, UserError] = {str(first): first}
    for name in config.data.domains:
        for each in _collected(partial(prepare, config, only=name)):
            found.setdefault(str(each), each)
    return None, list(found.values())


def _tokenizer_and_model(config: RunConfig) -> None:
    """Both can be loaded and fit each other; the weights themselves are not read."""
    tokenizer = load_tokenizer(config)
    size = vocabulary_size(tokenizer)
    described = _described(config.model)
    rows = getattr(described, "vocab_size", None)
    if rows is not None and rows < size:
        raise UserError(
            f"its embedding has {rows} rows, the tokenizer {size} tokens",
            key="model.path",
            value=config.model.path,
            remedy="use the model's own tokenizer (leave tokenizer.path out)",
        )
    if config.model.config is not None:
        with init_empty_weights():
            described = load_model(
                config.model,
                vocab_size=size,
                eos_token_id=tokenizer.eos_token_id,
                seed=config.seed,
                seq_len=config.data.seq_len,
            ).config.get_text_config()
    context = getattr(described, "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < config.data.seq_len:
        raise UserError(
            f"is above the model's context, {context} tokens",
            key="data.seq_len",
            value=config.data.seq_len,
            remedy=f"set at most {context}"
            + (", or raise model.config.max_position_embeddings" if config.model.config else ""),
        )
    model = architecture(config.model, vocab_size=size, eos_token_id=tokenizer.eos_token_id)
    if any(stage.decide_at for stage in config.stages):
        try_probes(model, config.probe, autocast=config.model.autocast)
    else:
        try_model(model)
    gpus = max(config.search.gpus, config.probe.gpus)
    if gpus > 1:
        check_spread(model, gpus)


def _described(model: ModelConfig) -> Any:
    """A pretrained model's configuration of text; None where there is none to read."""
    if model.path is None or model.gguf_file is not None:
        return None
    directory = Path(model.path)
    if directory.is_dir() and not any(path.name.endswith(_WEIGHTS) for path in directory.iterdir()):
        problem = (
            "holds no weights" if (directory / "config.json").is_file() else "is not a model's directory"
        )
        raise UserError(problem, key="model.path", value=model.path, remedy=_MODEL_REMEDY)
    try:
        found = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot be read as a model: {first_line(error)}",
            key="model.path",
            value=model.path,
            remedy=_MODEL_REMEDY,
        ) from None
    return found.get_text_config()


def spaces(config: RunConfig) -> list[Space]:
    """Every decision's search space, on the mixture its stage begins with; domains count as equally large.

    Raises:
        UserError: one of them cannot be built.
    """
    found: list[Space] = []
    current = beginning(config).mixture
    for position, stage in enumerate(config.stages):
        names = stage_domains(config, stage)
        tokens = dict.fromkeys(names, 1.0)  # none are counted yet
        old = follow(current, {name: Origin.of(config.data.domains[name]) for name in names}, tokens)
        here = wanted_mixture(stage, old, tokens)
        for nth in range(len(decision_points(stage))):
            key = "search.space" if stage.search_space is None else f"stages.{position}.search_space"
            found.append(_space(config, space_of(config, stage, nth), key, here, old))
        current = here.shares
    return found


def _space(config: RunConfig, space: str, key: str, start: Mixture, old: Mixture | None) -> Space:
    try:
        kind = read_space(space)[0].kind
        components = choose_components(kind, old, start).components(config.probe.new_share)
        found = load_space(space, components, config.data.domains)
    except UserErrors:
        raise
    except UserError as error:
        if error.file is not None:
            raise
        value = space if error.value is None else error.value
        raise UserError(error.problem, key=key, value=value, remedy=error.remedy) from None
    _check_trials(config, len(components.names))
    return found


def _check_trials(config: RunConfig, components: int) -> None:
    """Enough candidates for a law, where a decision does not size them itself.

    Counting gives the law `auto` most of what it needs; another law has a slope for every component, and a floor.
    """
    search, law = config.search, config.proposal.law
    sized = search.budget is not None and "trials" not in search.model_fields_set
    if sized or with_slopes(config, components, config.search.trials):
        return
    least = LEAST_ROWS if law == "auto" else max(LEAST_ROWS, components + 1)
    if search.trials < least:
        raise UserError(
            f"are fewer candidates than the law `{law}` needs for {components} components, {least}",
            key="search.trials",
            value=search.trials,
            remedy=f"set at least {least}"
            + (", or leave it out: search.budget says how many" if search.budget is not None else ""),
        )
