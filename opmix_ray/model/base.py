"""The main run's weights as plain arrays, put into the object store once and read by probes and evaluators alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
