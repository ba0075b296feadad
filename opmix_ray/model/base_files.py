"""A `BaseModel` as a directory: `weights.safetensors` and `model.json`."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from opmix_ray.model.base import BaseModel

SPEC = "model.json"  # written last: a directory with it is whole
_WEIGHTS = "weights.safetensors"


def save_base(base: BaseModel, directory: Path | str) -> None:
    """Write a model's architecture and weights into a directory that is there."""
    save_file({name: array.copy() for name, array in base.weights.items()}, Path(directory) / _WEIGHTS)
    content = {"spec": base.spec, "bfloat16": sorted(base.bfloat16)}
    (Path(directory) / SPEC).write_text(json.dumps(content), encoding="utf-8")


def load_base(directory: Path | str) -> BaseModel:
    """The inverse of `save_base`."""
    content = json.loads((Path(directory) / SPEC).read_text(encoding="utf-8"))
    return BaseModel(content["spec"], load_file(Path(directory) / _WEIGHTS), frozenset(content["bfloat16"]))
