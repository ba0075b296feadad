"""What a model was trained on before, out of a file of any of the formats: `base.mixture` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from opmix_ray.config.data import BaseConfig, SourceConfig
from opmix_ray.errors import UserError
from opmix_ray.exchange.read import read_weights


def old_mixture(base: BaseConfig, domains: Mapping[str, SourceConfig]) -> tuple[BaseConfig, list[UserError]]:
    """The weights by domain instead of the file that they are in, and what they count.

    Args:
        base: its `mixture` is a file.
        domains: entries of the file are matched with their names, the names they had before, and their paths.

    Returns:
        The same with a mapping, or without a mixture where the file cannot be read or an entry is none of the domains;
        and what is wrong.
    """
    places: dict[str, list[str]] = {}
    for name, source in domains.items():
        places[name] = [source.path] if isinstance(source.path, str) else list(source.path)
    for source in domains.values():
        for old in source.earlier_names:
            places.setdefault(old, [])
    try:
        found = read_weights(str(base.mixture))
        weights = found.over(places)
    except UserError as error:
        wrong = UserError(
            error.problem, file=error.file, key="base.mixture", value=error.value, remedy=error.remedy
        )
        return base.model_copy(update={"mixture": None}), [wrong]
    return base.model_copy(update={"mixture": weights, "mixture_unit": base.mixture_unit or found.unit}), []
