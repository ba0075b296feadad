"""A mixture out of a file of any of the formats: found by content, matched with domains by name or path.

weights = read_weights("old/llamafactory.yaml")
weights.over({"code": ["/data/code.jsonl"], "prose": ["/data/prose.jsonl"]})   # {"code": 0.3, "prose": 0.7}
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from opmix_ray.errors import UserError, first_line
from opmix_ray.exchange.handover import SourceWeight, Unit, as_weight, prefix, stem, without_query
from opmix_ray.exchange.interleave import read_datasets, read_streaming, read_torchtitan
from opmix_ray.exchange.megatron import read_blend, read_energon, read_nemo
from opmix_ray.exchange.olmo import read_olmix, read_olmo_core
from opmix_ray.exchange.tuning import read_axolotl, read_llamafactory
from opmix_ray.paths import is_uri
from opmix_ray.remote import is_local, local_path
from opmix_ray.storage import split_file
from opmix_ray.yaml_file import parse_yaml

KNOWN = (
    "mixture.json, shares by name, or a file of Megatron, Megatron-Energon, OLMo-core, NeMo, torchtitan, "
    "LLaMA-Factory, Axolotl, datasets, Streaming or olmix"
)
_SAYS_TOKENS = re.compile(r"^# `\w+` is the share of training tokens", re.MULTILINE)


@dataclass(frozen=True)
class Weights:
    """A mixture as a file says it.

    Args:
        file: path or URI.
        unit: what its weights count.
        entries: in the file's order.
    """

    file: str
    unit: Unit
    entries: list[SourceWeight]

    def over(self, domains: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Weight of each domain that the file gives one, summing to 1; several entries of a domain are added up.

        Args:
            domains: names, and the paths of their data.

        Raises:
            UserError: an entry is neither a domain by its name nor by a path, or all weights are 0.
        """
        found: dict[str, float] = {}
        for entry in self.entries:
            name = self._domain(entry, domains)
            found[name] = found.get(name, 0.0) + entry.weight
        most = max(found.values())
        if not 0 < most < math.inf:
            raise UserError(
                "gives no domain a finite weight above 0", file=self.file, remedy="mend the weights"
            )
        total = math.fsum(weight / most for weight in found.values())
        return {name: weight / most / total for name, weight in found.items()}

    def _domain(self, entry: SourceWeight, domains: Mapping[str, Sequence[str]]) -> str:
        names = {name.lower(): name for name in domains}
        numbered = re.sub(r"\.\d+$", "", entry.name)
        for name in (entry.name, entry.name.lower(), numbered, numbered.lower()):
            if name in domains or name in names:
                return name if name in domains else names[name]
        base = "" if is_uri(self.file) else str(Path(self.file).absolute().parent)
        for same in (_plain, _converted):  # a copy in Megatron's format lies beside the text
            named = {same(path, base) for path in entry.paths}
            found = [name for name, paths in domains.items() if named & {same(path, "") for path in paths}]
            if len(found) == 1 or (found and same is _plain):
                return found[0]
        raise UserError(
            "is neither the name nor the path of a domain",
            file=self.file,
            value=entry.name,
            remedy=f"call the domain so, or give the shares by name; domains: {', '.join(domains)}",
        )


def _plain(path: str, base: str) -> str:
    """A path without what differs between trainers: relative or not, `.bin` and `.idx`, a glob at its end."""
    path = local_path(path) if is_local(path) else without_query(path)
    if base and not is_uri(path) and not path.startswith("/"):
        path = str((Path(base) / path).resolve())
    return re.sub(r"(\.part)?/\*[^/]*$", "", prefix(path)).rstrip("/")


def _converted(path: str, base: str) -> str:
    """What Megatron's tools make of a file, `code_text_document` of `code.jsonl`, and the file itself, alike."""
    return re.sub(r"_[A-Za-z0-9]+_document$", "", stem(_plain(path, base)))


def read_weights(file: str) -> Weights:
    """Read a mixture.

    Args:
        file: path or URI.

    Raises:
        UserError: there is no such file, or it is of none of the formats.
    """
    text = _text(file)
    try:
        found = _parse(text, file.partition("?")[0].lower())
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        SyntaxError,
        yaml.YAMLError,
    ) as error:
        raise UserError(f"cannot be read: {first_line(error)}", file=file, remedy="mend the file") from None
    if found is None:
        raise UserError("is not a mixture of a known format", file=file, remedy=f"known are {KNOWN}")
    unit, entries = found
    if not entries:
        raise UserError("names no data", file=file, remedy="mend the file")
    return Weights(file, "tokens" if _SAYS_TOKENS.search(text) else unit, entries)


def _text(file: str) -> str:
    if not is_uri(file) and not Path(file).is_file():
        problem = "is a directory" if Path(file).is_dir() else "no such file"
        raise UserError(problem, file=file, remedy="name the file with the mixture")
    storage, name = split_file(file)
    return storage.read_text(name)


def _parse(text: str, name: str) -> tuple[Unit, list[SourceWeight]] | None:
    if name.endswith(".py"):
        return _first(_PYTHON, ast.parse(text))
    if name.endswith(".json"):
        return _first(_TREES, json.loads(text))
    blend = read_blend(text)
    if blend is not None:
        return "tokens", blend
    return _first(_TREES, parse_yaml(text))


def _first(readers: Sequence[tuple[Unit, Callable[[Any], list[SourceWeight] | None]]], tree: Any) -> Any:
    for unit, read in readers:
        entries = read(tree)
        if entries is not None:
            return unit, entries
    return None


def _read_shares(tree: Any) -> list[SourceWeight] | None:
    """Our own mixture.json, or a plain mapping of names to shares."""
    if isinstance(tree, dict) and isinstance(tree.get("mixture"), dict):
        tree = tree["mixture"]
    if not isinstance(tree, dict) or not tree:
        return None
    try:
        return [SourceWeight(str(name), (), as_weight(share)) for name, share in tree.items()]
    except ValueError:
        return None


_TREES: list[tuple[Unit, Callable[[Any], list[SourceWeight] | None]]] = [
    ("tokens", read_nemo),
    ("documents", read_energon),
    ("tokens", read_olmo_core),
    ("documents", read_llamafactory),
    ("documents", read_streaming),
    ("tokens", read_olmix),
    ("documents", read_axolotl),
    ("tokens", _read_shares),
]
_PYTHON: list[tuple[Unit, Callable[[Any], list[SourceWeight] | None]]] = [
    ("documents", read_datasets),
    ("tokens", read_torchtitan),
]
