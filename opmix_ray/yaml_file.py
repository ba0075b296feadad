"""YAML files as people write them: keys given twice are refused, `3e-4` is a number, errors name the line.

Numbers are those of YAML 1.2: 1.1 reads `010` as 8 and `1:30` as 90.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from opmix_ray.errors import UserError


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # `<<: *other`, whose keys may be given again
                continue
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag in _READ_AS_TEXT:
                key_node.tag = "tag:yaml.org,2002:str"
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# Keys are names: a domain may be called `no` or `1`, which YAML reads as False and as a number.
_READ_AS_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp")}

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in found if tag.rpartition(":")[2] not in _NUMBERS]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form in _NUMBERS.items():
    _UniqueKeyLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_form})$"), list("-+0123456789.")
    )

_MOST = 1_000_000  # values of a text, those behind `*name` counted each time


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML.
    """
    found = yaml.load(text, Loader=_UniqueKeyLoader)
    _size(found, {})
    return found


def _size(value: Any, sizes: dict[int, float]) -> float:
    """How many values there are in one; refuses one that holds itself, and one that aliases make endless."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until it is known
        inside = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(each, sizes) for each in inside)
    if sizes[id(value)] > _MOST:
        raise ValueError("an alias stands inside what it names, or aliases make it far too large")
    return sizes[id(value)]


def read_yaml(path: Path | str, like: str = "write `name: value` lines") -> dict[str, Any]:
    """Read one YAML mapping.

    Args:
        path: of the file.
        like: the remedy where it holds none.

    Raises:
        UserError: the file is missing, is not text, is empty, or is not a YAML mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("no such file", file=path, remedy="check the path") from None
    except IsADirectoryError:
        raise UserError("is a directory", file=path, remedy="name a YAML file") from None
    except UnicodeDecodeError:
        raise UserError("is not text", file=path, remedy="name a YAML file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read: {reason}", file=path, remedy="check the path") from None
    try:
        loaded = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise UserError(f"is not valid YAML{where}: {problem}", file=path, remedy="mend the line") from None
    if loaded is None:
        raise UserError("is empty", file=path, remedy=like)
    if not isinstance(loaded, dict):
        raise UserError("must be a mapping of keys to values", file=path, remedy=like)
    return loaded


def override(tree: dict[str, Any], setting: str, meant: Callable[[str, Any], Any] | None = None) -> None:
    """Apply one `dotted.key=value` to a tree in place; the value is read as YAML.

    Args:
        tree: as of a YAML file.
        setting: the key and the value.
        meant: what a value means at a key, given the key's last name and the value; None: what it says.

    Raises:
        UserError: there is no `=`, the value is not YAML, or the key leads nowhere.
    """
    key, separator, text = setting.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")  # stages[0].steps, as others write it
    if not separator or not all(parts):
        raise _wrong("must look like key=value", setting, "for example --set train.batch_size=8")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _wrong("the value is not valid YAML", setting, "put it in quotes") from None
    if meant is not None:
        value = meant(next((part for part in reversed(parts) if not part.isdecimal()), ""), value)
    node: Any = tree
    for part in parts[:-1]:
        if isinstance(node, list):
            node = node[_index(node, part, setting)]
        elif node.get(part) is None:
            node[part] = node = {}
        else:
            node = node[part]
        if not isinstance(node, dict | list):
            raise _wrong(f"`{part}` has no keys below it", setting, "check the key")
    if isinstance(node, list):
        node[_index(node, parts[-1], setting)] = value
    else:
        node[parts[-1]] = value


def _index(node: list[Any], part: str, setting: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise _wrong(
            f"`{part}` is not one of the {len(node)} entries",
            setting,
            "count from 0, for example stages.0.steps=100",
        )
    return int(part)


def _wrong(problem: str, setting: str, remedy: str) -> UserError:
    return UserError(problem, key="--set", value=setting, remedy=remedy)
