"""A configuration from a YAML file or a mapping, and back: overrides, paths made absolute.

    config = load_config("examples/quickstart.yaml", overrides=["train.batch_size=8"])

Paths in a file are relative to that file; `output` is relative to the working directory, and so are paths in overrides
that lead somewhere from there.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from opmix_ray.config.data import SourceConfig
from opmix_ray.config.run import RunConfig
from opmix_ray.config.section import parse_config, parse_partly
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.paths import is_uri
from opmix_ray.secret import hidden
from opmix_ray.yaml_file import override, read_yaml

_PATHS = {"path", "cache", "run", "mixture", "include_path"}  # keys whose values are paths
_SPACES = {"space", "search_space"}  # a name, or the path of a YAML file


def load_config(path: Path | str, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's configuration from a YAML file.

    Args:
        path: the file.
        overrides: `dotted.key=value` strings; values are read as YAML.

    Raises:
        UserErrors: everything that is wrong with keys and values, one error each.
    """
    config, errors = load_partly(path, overrides)
    if errors or config is None:
        raise UserErrors(errors)
    return config


def make_config(tree: Mapping[str, Any], directory: Path | str = ".") -> RunConfig:
    """A configuration from a mapping as in a YAML file; relative paths in it are below `directory`.

    Raises:
        UserErrors: everything that is wrong with keys and values, one error each.
    """
    config = _resolve_paths(parse_config(RunConfig, dict(tree)), Path(directory).resolve())
    config, errors = _read_old_mixture(config)
    if errors:
        raise UserErrors(errors)
    return config


def load_partly(
    path: Path | str, overrides: list[str] | None = None
) -> tuple[RunConfig | None, list[UserError]]:
    """Read a configuration and go on past wrong keys and values, to find out what else is wrong.

    Returns:
        The configuration as far as it can be understood, or None; and everything that is wrong.

    Raises:
        UserError: the file is not a YAML mapping.
    """
    path = Path(path)
    tree = read_yaml(path)
    errors: list[UserError] = []
    for setting in overrides or []:
        try:
            override(tree, setting, _from_here)
        except UserError as error:
            errors.append(error)
    config, wrong = parse_partly(RunConfig, tree, path)
    errors += wrong
    if config is not None:
        config, wrong = _read_old_mixture(_resolve_paths(config, path.resolve().parent))
        errors += wrong
    return config, errors


def _from_here(key: str, value: Any) -> Any:
    """A value as its key means it on a command line: paths are what a shell completes, from the working directory.

    What leads nowhere from there stays as it is: relative to the file, or a hub id.
    """
    if isinstance(value, dict):
        return {name: _from_here(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_here(key, inner) for inner in value]
    if not isinstance(value, str) or is_uri(value):
        return value
    if key in _PATHS or (key in _SPACES and value.endswith((".yaml", ".yml"))):
        path = os.path.expanduser(value)
        if os.path.exists(path) or any(glob.iglob(path, recursive=True)):
            return str(Path(path).absolute())
    return value


SourceT = TypeVar("SourceT", bound=SourceConfig)


def continued(config: RunConfig, run: str) -> RunConfig:
    """The configuration going on from a finished run's output, with that run's model, whatever model it names."""
    place = run if is_uri(run) else str(Path(run).expanduser().absolute())
    model = config.model.model_copy(update={"path": None, "config": None, "gguf_file": None})
    return config.model_copy(
        update={"model": model, "base": config.base.model_copy(update={"run": place, "mixture": None})}
    )


def _resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """Make relative paths absolute, so that a run does not depend on where it was started."""

    def local(path: str) -> str:
        if is_uri(path):
            return path
        return str((base / Path(path).expanduser()).absolute())

    def source(entry: SourceT) -> SourceT:
        paths = entry.path
        resolved = [local(p) for p in paths] if isinstance(paths, list) else local(paths)
        return entry.model_copy(update={"path": resolved})

    def hub_or_local(path: str | None) -> str | None:
        """Beside the file, or where transformers would look for it before a hub, which other processes could not."""
        if path is None or is_uri(path):
            return path
        places = [(place / Path(path).expanduser()).absolute() for place in (base, Path.cwd())]
        return next((str(place) for place in places if place.exists()), path)

    def space(name: str) -> str:
        return local(name) if name.endswith((".yaml", ".yml")) else name

    def spaces(names: str | list[str] | None) -> str | list[str] | None:
        return [space(name) for name in names] if isinstance(names, list) else names and space(names)

    data = config.data.model_copy(
        update={
            "domains": {n: source(s) for n, s in config.data.domains.items()},
            "cache": local(config.data.cache),
        }
    )
    harness = config.evaluation.harness
    if harness is not None and harness.include_path is not None:
        harness = harness.model_copy(update={"include_path": local(harness.include_path)})
    sets = {n: source(s) for n, s in config.evaluation.sets.items()}
    evaluation = config.evaluation.model_copy(update={"sets": sets, "harness": harness})
    stages = [s.model_copy(update={"search_space": spaces(s.search_space)}) for s in config.stages]
    return config.model_copy(
        update={
            "data": data,
            "evaluation": evaluation,
            "stages": stages,
            "base": config.base.model_copy(
                update={
                    "run": config.base.run and local(config.base.run),
                    "mixture": local(mixture) if isinstance(mixture := config.base.mixture, str) else mixture,
                }
            ),
            "model": config.model.model_copy(update={"path": hub_or_local(config.model.path)}),
            "tokenizer": config.tokenizer.model_copy(update={"path": hub_or_local(config.tokenizer.path)}),
            "search": config.search.model_copy(update={"space": space(config.search.space)}),
        }
    )


def _read_old_mixture(config: RunConfig) -> tuple[RunConfig, list[UserError]]:
    """The configuration with the old mixture instead of its file; without it where the file is wrong, and why.

    Entries of the file are matched with the domains' names, the names they had before, and their paths.
    """
    base = config.base
    if not isinstance(base.mixture, str):
        return config, []
    from opmix_ray.exchange.read import read_weights  # most configurations name no such file

    places: dict[str, list[str]] = {}
    for name, source in config.data.domains.items():
        places[name] = [source.path] if isinstance(source.path, str) else list(source.path)
    for source in config.data.domains.values():
        for old in source.earlier_names:
            places.setdefault(old, [])
    try:
        found = read_weights(base.mixture)
        changes: dict[str, Any] = {
            "mixture": found.over(places),
            "mixture_unit": base.mixture_unit or found.unit,
        }
        errors = []
    except UserError as error:
        changes = {"mixture": None}
        errors = [
            UserError(
                error.problem, file=error.file, key="base.mixture", value=error.value, remedy=error.remedy
            )
        ]
    return config.model_copy(update={"base": base.model_copy(update=changes)}), errors


def dump_config(config: RunConfig, *, secrets: bool = False) -> str:
    """The resolved configuration as YAML; passwords and keys only with `secrets`.

    Every default is written out but the sizes that `search.budget` chooses: read again they would count as given.
    """
    tree = config.model_dump(mode="json")
    return yaml.safe_dump(tree if secrets else without_secrets(tree), sort_keys=False, allow_unicode=True)


def without_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration's tree as it may be written down: names tell a secret in `watch`, URIs everywhere."""
    return {key: hidden(entry, names=key == "watch") for key, entry in tree.items()}
