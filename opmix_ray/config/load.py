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
from typing import Any

import yaml

from opmix_ray.config.run import RunConfig
from opmix_ray.config.section import parse_config, parse_partly
from opmix_ray.errors import UserError, UserErrors
from opmix_ray.harmless import hidden
from opmix_ray.paths import is_uri
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
    config, errors = _read_old_mixture(parse_config(RunConfig, dict(tree), base=Path(directory).resolve()))
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
    tree = read_yaml(path, "start from `examples/quickstart.yaml`, or see docs/configuration.md")
    errors: list[UserError] = []
    for setting in overrides or []:
        try:
            override(tree, setting, _from_here)
        except UserError as error:
            errors.append(error)
    config, wrong = parse_partly(RunConfig, tree, path, path.resolve().parent)
    errors += wrong
    if config is not None:
        config, wrong = _read_old_mixture(config)
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


def with_given(
    config: RunConfig,
    *,
    output: str | None = None,
    address: str | None = None,
    model: Path | None = None,
    base: str | None = None,
) -> RunConfig:
    """The configuration with what a command line says; None: as its file says.

    Args:
        config: the file's.
        output: directory or URI of the results.
        address: of Ray.
        model: directory of the model.
        base: output of a finished run to go on from, with its model, whatever model the file names.
    """
    changes: dict[str, Any] = {}
    if output is not None:
        changes["output"] = output
    if address is not None:
        changes["cluster"] = {"address": address}
    if model is not None:
        changes["model"] = config.model.at(model.absolute())
    if base is not None:
        place = base if is_uri(base) else str(Path(os.path.expanduser(base)).absolute())
        changes["model"] = {"path": None, "config": None, "gguf_file": None}
        changes["base"] = {"run": place, "mixture": None}
    return config.but(**changes)


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
    return config.but(base=changes), errors


def dump_config(config: RunConfig, *, secrets: bool = False) -> str:
    """The resolved configuration as YAML; passwords and keys only with `secrets`.

    Every default is written out but the sizes that `search.budget` chooses: read again they would count as given.
    """
    tree = config.model_dump(mode="json")
    return yaml.safe_dump(tree if secrets else without_secrets(tree), sort_keys=False, allow_unicode=True)


def without_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration's tree as it may be written down: names tell a secret in `watch`, URIs everywhere."""
    return {key: hidden(entry, names=key == "watch") for key, entry in tree.items()}
