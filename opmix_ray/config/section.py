"""Parts of a configuration as pydantic models, and what is wrong with a tree of values in our own words.

gone("probe.settle")       # "all probes have the same length: set probe.steps"
without_gone(tree)         # an earlier run's own config.yaml, which was written with every key

class Optimizer(Section):
    learning_rate: float = Field(3e-4, gt=0, description="Peak learning rate.")

parse_config(Optimizer, {"learnin_rate": 1}, "run.yaml")   # UserErrors: did you mean `learning_rate`?
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError, PydanticUndefined

from opmix_ray.errors import UserError, UserErrors
from opmix_ray.harmless import shown
from opmix_ray.paths import is_uri

_NOT_TRAINED_ON = "an evaluation set is never trained on, so leave it out"

# Key, with `*` for a name or a position -> what to do instead.
GONE = {
    "evaluation.sets.*.min_share": _NOT_TRAINED_ON,
    "evaluation.sets.*.max_share": _NOT_TRAINED_ON,
    "evaluation.sets.*.max_epochs": _NOT_TRAINED_ON,
    "evaluation.sets.*.group": _NOT_TRAINED_ON,
    "evaluation.sets.*.renamed_from": _NOT_TRAINED_ON,
    "evaluation.sets.*.split_from": _NOT_TRAINED_ON,
    "probe.settle": "all probes have the same length: set probe.steps",
    "probe.settle_every": "all probes have the same length: set probe.steps",
    "search.chunks": "every candidate sees all sequences: lower search.sequences for a cheaper search",
    "probe.max_retries": "set cluster.max_retries",
    "search.batch_size": "set evaluation.batch_size",
    "search.max_retries": "set cluster.max_retries",
    "evaluation.harness.batch_size": "set evaluation.batch_size",
    "stages.*.overlap_steps": "set overlap to the number of steps",
    "search.patience": "all candidates are scored: lower search.trials for a cheaper search",
    "search.scheduler": "every candidate sees all sequences: lower search.sequences for a cheaper search",
    "strategies.swarm.law": "it is log-linear: leave it out",
    "strategies.swarm.kl": "it is 0.05: leave it out",
    "strategies.swarm.concentration": "it is 0.5 to 5: leave it out",
    "strategies.mergemix.law": "it is log-linear: leave it out",
    "strategies.mergemix.kl": "it is 0.05: leave it out",
    "train.optimizer.eps": "it is 1e-8: leave it out",
    "strategies.aioli.ema": "it is 0.1: leave it out",
    "strategies.doremi.smoothing": "it is 0.001: leave it out",
    "strategies.doremi.reference": "the reference reads in proportion to tokens: leave it out",
    "proposal.confidence": "the interval is of 95 %: leave it out",
    "proposal.bootstrap": "the interval takes 2,000 resamples: leave it out",
    "proposal.eps_steps": "it is a measured constant, 2 steps: leave it out",
    "proposal.slope_growth": "it is a measured constant, 1.4: leave it out",
    "proposal.slope_trust": "it is a measured constant, 0.4: leave it out",
    "proposal.transfer_trust": "it is a measured constant, 0.25: leave it out",
}


def gone(key: str) -> str | None:
    """What to do instead of a dotted key that is gone; None where there never was such a key."""
    return next(
        (remedy for pattern, remedy in GONE.items() if _fits(key.split("."), pattern.split("."))), None
    )


def _fits(key: list[str], pattern: list[str]) -> bool:
    return len(key) == len(pattern) and all(map(fnmatchcase, key, pattern))


def without_gone(tree: Any) -> Any:
    """A configuration's tree without the keys that are gone."""
    tree = copy.deepcopy(tree)
    for pattern in GONE:
        *above, last = pattern.split(".")
        for node in _below(tree, above):
            node.pop(last, None)
    return tree


def _below(node: Any, path: list[str]) -> list[dict[str, Any]]:
    """The mappings at the end of a path with `*` in it."""
    if not isinstance(node, dict | list):
        return []
    if not path:
        return [node] if isinstance(node, dict) else []
    named = node if isinstance(node, dict) else {str(position): each for position, each in enumerate(node)}
    return [
        found for name, each in named.items() if path[0] in ("*", name) for found in _below(each, path[1:])
    ]


SEE = "see docs/configuration.md"
_ROUNDS = 4  # of mending; a mended part can show what was hidden before


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused, and nothing in it changes once it is made."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, frozen=True)

    sized_by_rule: ClassVar[frozenset[str]] = frozenset()
    """Keys whose values a rule chooses unless they are given. Not given, they are left out of what is written down:
    whoever reads that would take them for given."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read `yes` as 1."""
        wanted = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and bool not in wanted and wanted & {int, float}:
            raise PydanticCustomError("number", "must be a number")
        return value

    @model_serializer(mode="wrap")
    def _without_unset_sizes(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        for key in self.sized_by_rule - self.model_fields_set:
            tree.pop(key, None)
        return tree

    def but(self, **changes: Any) -> Self:
        """Another section that differs in these keys; a mapping changes keys of the section below.

        config.but(seed=1, probe={"steps": 3})
        """

        def changed(key: str, value: Any) -> Any:
            now = getattr(self, key)
            return now.but(**value) if isinstance(now, Section) and isinstance(value, Mapping) else value

        return self.model_copy(update={key: changed(key, value) for key, value in changes.items()})


def _kinds(annotation: Any) -> set[Any]:
    """The types of which a value may be, without those inside lists and mappings."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {get_origin(annotation) or annotation} if isinstance(annotation, Hashable) else set()


SectionT = TypeVar("SectionT", bound=Section)


def _beside(resolve: Callable[[str, Path], str]) -> AfterValidator:
    """Resolves a path where it is known which directory it is relative to, as in a file."""

    def resolved(path: str, info: ValidationInfo) -> str:
        base = (info.context or {}).get("base")
        return path if base is None or is_uri(path) else resolve(path, base)

    return AfterValidator(resolved)


def _local(path: str, base: Path) -> str:
    return str((base / Path(os.path.expanduser(path))).absolute())


def _hub_or_local(path: str, base: Path) -> str:
    """Beside the file, or where transformers would look for it before a hub, which other processes could not."""
    places = [(place / Path(os.path.expanduser(path))).absolute() for place in (base, Path.cwd())]
    return next((str(place) for place in places if place.exists()), path)


# Paths in a file are relative to it. What a run holds is absolute, so that it does not depend on where it was started.
PathKey = Annotated[str, _beside(_local)]
HubOrPath = Annotated[str, _beside(_hub_or_local)]
SpaceKey = Annotated[
    str, _beside(lambda name, base: _local(name, base) if name.endswith((".yaml", ".yml")) else name)
]


def parse_config(
    kind: type[SectionT], tree: dict[str, Any], file: object = None, base: Path | None = None
) -> SectionT:
    """Validate a tree against one of the models, with errors in our own words.

    Args:
        kind: the model.
        tree: as read.
        file: it is from, for errors.
        base: directory that paths are relative to; None: they stay as they are.

    Raises:
        UserErrors: everything that is wrong with keys and values, one error each.
    """
    try:
        return kind.model_validate(tree, context={"base": base})
    except ValidationError as error:
        raise UserErrors(_translated(error, kind, tree, file)) from None


def parse_partly(
    kind: type[SectionT], tree: dict[str, Any], file: object = None, base: Path | None = None
) -> tuple[SectionT | None, list[UserError]]:
    """Validate a tree and go on past what is wrong, so that the rest can be looked at too.

    A misspelt key is read as the one it is near to; a wrong value is replaced by the default.

    Returns:
        The model, or None where something is missing that has no default; and everything that is wrong.
    """
    tree = copy.deepcopy(tree)
    errors: list[UserError] = []
    for _ in range(_ROUNDS):
        try:
            return kind.model_validate(tree, context={"base": base}), errors
        except ValidationError as error:
            known = {str(found) for found in errors}
            first = not errors
            items = error.errors()
            errors += [
                found
                for found in _translated(error, kind, tree, file)
                if str(found) not in known and (first or found.problem != _MISSING)
            ]
            misspelt = _misspelt(items, kind)
            if any(item["type"] == "missing" and item["loc"] not in misspelt for item in items):
                return None, errors
            for item in items:
                if item["type"] != "missing":
                    _mend(tree, item, kind)
    return None, errors


_MISSING = "is missing"
_ALIKE = 0.8  # how near another key is that is meant rather than the same one in another section
_NUMBER, _SHOWN = "0.", 3
_GONE = "there is no such key any more"


def _translated(
    error: ValidationError, kind: type[Section], tree: dict[str, Any], file: object
) -> list[UserError]:
    """One error for each place; what the branches of a union say about it is joined."""
    places: dict[tuple[str, ...], list[Any]] = {}
    items = error.errors()
    misspelt = _misspelt(items, kind)
    for item in items:
        if item["type"] == "missing" and item["loc"] in misspelt:
            continue
        places.setdefault(_path(tree, item["loc"], item["type"]), []).append(item)
    inner = [p for p in places if not any(len(o) > len(p) and o[: len(p)] == p for o in places)]
    return [_translate(places[place], place, kind, file) for place in inner]


def _misspelt(items: Sequence[Any], kind: type[Section]) -> set[tuple[Any, ...]]:
    """Locations of the keys that unknown ones are probably meant to be."""
    unknown = [item for item in items if item["type"] == "extra_forbidden"]
    return {(*item["loc"][:-1], _nearest(item, kind)[0]) for item in unknown}


def _path(tree: Any, location: tuple[Any, ...], error: str) -> tuple[str, ...]:
    """The keys of a location; pydantic also names the branches of a union, which are no keys."""
    path: list[str] = []
    node: Any = tree
    last = len(location) - 1
    for position, part in enumerate(location):
        if isinstance(node, dict) and (part in node or (position == last and error == "missing")):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _translate(items: Sequence[Any], path: tuple[str, ...], kind: type[Section], file: object) -> UserError:
    item, key = items[0], ".".join(path)
    if item["type"] == "extra_forbidden":
        if (instead := gone(key)) is not None:
            return UserError(_GONE, file=file, key=key, value=item["input"], remedy=instead)
        near, known = _nearest(item, kind)
        places = _places(kind, str(item["loc"][-1]))
        remedy = f"known keys: {', '.join(known)}"
        if near or places:
            remedy = "did you mean " + " or ".join(f"`{name}`" for name in ([near] if near else places)) + "?"
        return UserError("unknown key", file=file, key=key, value=item["input"], remedy=remedy)
    if item["type"] == "missing" and isinstance(item["loc"][-1], int):
        return UserError(
            "has too few values", file=file, key=key, value=item["input"], remedy=_remedy(kind, path)
        )
    if item["type"] == "missing":
        return UserError(_MISSING, file=file, key=key, remedy=f"add it ({SEE})")
    messages = dict.fromkeys(_message(each) for each in items)
    inner = _section(kind, path)
    if item["type"].startswith("model_") and inner is not None and "path" in inner.model_fields:
        messages = {
            f"must be a section of keys and values, such as {{path: {shown(item['input'], key)}}}": None
        }
    value = "nothing" if item["input"] is None else item["input"]
    return UserError(" or ".join(messages), file=file, key=key, value=value, remedy=_remedy(kind, path))


_PLAIN = {  # pydantic's words that say little to a person
    "model_type": "must be a section of keys and values, such as {key: value}",
    "model_attributes_type": "must be a section of keys and values, such as {key: value}",
    "dict_type": "must be a valid dictionary, such as {name: value}",
    "list_type": "must be a list, such as [first, second]",
    "int_parsing": "must be a valid integer, such as 8",
    "float_parsing": "must be a valid number, such as 0.5",
}


def _message(item: Any) -> str:
    text = str(item["msg"]).replace("Input should be", "must be")
    if item["type"] == "string_pattern_mismatch":
        text = "may hold letters, digits, `_`, `.` and `-` only, and begins with a letter or digit"
    text = _PLAIN.get(item["type"], text)
    if item["type"] == "too_short" and item["ctx"]["actual_length"] == 0:
        text = "is empty"
    return text[0].lower() + text[1:]


def _remedy(kind: type[Section], path: tuple[str, ...]) -> str:
    section = _section(kind, path[:-1])
    field = section.model_fields.get(path[-1]) if section and path else None
    if field is None or field.default is PydanticUndefined or field.default is None:
        return SEE
    return f"the default is {field.default} ({SEE})"


def _nearest(item: Any, kind: type[Section]) -> tuple[str | None, list[str]]:
    section = _section(kind, item["loc"][:-1])
    known = list(section.model_fields) if section else []
    name = str(item["loc"][-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE if _places(kind, name) else 0.5)
    return (near[0] if near else None), known


def _places(kind: type[Section], name: str) -> list[str]:
    """Dotted keys, a few, under which a name is a key: `domains` is meant as `data.domains`."""
    found: list[str] = []
    level: list[tuple[str, type[Section]]] = [("", kind)]
    while level and not found:  # the places nearest to the top
        found = [f"{start}{name}" for start, section in level if name in section.model_fields]
        level = [
            (f"{start}{key}.{_NUMBER if 'list[' in str(field.annotation) else ''}", inner)
            for start, section in level
            for key, field in section.model_fields.items()
            if (inner := inner_section(field.annotation)) is not None and "dict[" not in str(field.annotation)
        ]
    return found[:_SHOWN]


def _section(kind: type[Section], location: Sequence[Any]) -> type[Section] | None:
    """The model that holds the keys below a location."""
    current: type[Section] | None = kind
    for part in location:
        if current is None:
            return None
        field = current.model_fields.get(str(part))
        if field is not None:
            current = inner_section(field.annotation)
        # else a name in dict[str, Section] or a position in list[Section]: the same model
    return current


def inner_section(annotation: Any) -> type[Section] | None:
    """The section that a field's type mentions, alone or in a list or mapping; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = inner_section(part)
        if found is not None:
            return found
    return None


def _mend(tree: dict[str, Any], item: Any, kind: type[Section]) -> None:
    """Read a misspelt key as the one it is near to, and let any other wrong field have its default."""
    path = _path(tree, item["loc"], item["type"])
    if item["type"] != "extra_forbidden":
        path = _field(kind, path)
    node: Any = tree
    for part in path[:-1]:
        node = node[int(part)] if isinstance(node, list) else node.get(part)
        if not isinstance(node, dict | list):
            return
    if not isinstance(node, dict) or not path:
        return
    value = node.pop(path[-1], None)
    if item["type"] == "extra_forbidden":
        near, _ = _nearest(item, kind)
        if near is not None and gone(".".join(path)) is None:
            node.setdefault(near, value)


def _field(kind: type[Section], path: tuple[str, ...]) -> tuple[str, ...]:
    """The part of a path that ends at the innermost field with a default; the path itself if there is none."""
    for length in range(len(path), 0, -1):
        section = _section(kind, path[: length - 1])
        field = section.model_fields.get(path[length - 1]) if section else None
        if field is not None:
            return path if field.is_required() else path[:length]
    return path
