"""The main run's weights as plain arrays, put into the object store once and read by probes and evaluators alike; or a
directory with `weights.safetensors` and `model.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from opmix_ray.model.interpolate import ProbeSet, arrays_of, view_of
from opmix_ray.model.load import build_empty, fill, model_spec
from opmix_ray.model.spread import Devices, Spread


@dataclass(frozen=True)
class BaseModel:
    """A model's architecture and weights.

    Attributes:
        spec: see `model_spec`.
        weights: parameter or buffer -> array; bfloat16 as its bits in uint16.
        bfloat16: names of the arrays that hold such bits.
    """

    spec: dict[str, Any]
    weights: dict[str, np.ndarray]
    bfloat16: frozenset[str]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.weights.values())


def snapshot(model: PreTrainedModel) -> BaseModel:
    """A model's weights; on the CPU the arrays are views of them."""
    weights, bits = arrays_of(model)
    return BaseModel(model_spec(model), weights, frozenset(bits))


def model_from(base: BaseModel, devices: Devices = "cpu") -> PreTrainedModel:
    """A model on the base's arrays, which must not be written to: freeze it, or only evaluate it.

    Args:
        base: from `snapshot`.
        devices: where to compute; over several the model's blocks are spread.
    """
    model = build_empty(base.spec)
    spread = Spread.over(model, devices, {name: array.nbytes for name, array in base.weights.items()})
    tensors = {n: view_of(a, n in base.bfloat16).to(spread.device_of(n)) for n, a in base.weights.items()}
    fill(model, base.spec, tensors)
    spread.connect(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def factors_only(probe_set: ProbeSet) -> ProbeSet:
    """A probe set without the base's arrays, for an object of its own."""
    return replace(probe_set, weights={}, bfloat16=frozenset())


def join_base(factors: ProbeSet, base: BaseModel) -> ProbeSet:
    """The inverse of `factors_only`."""
    return replace(factors, weights=base.weights, bfloat16=base.bfloat16)


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
