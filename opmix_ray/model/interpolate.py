"""theta(w) = theta + sum_c w_c * scale_c * B_c @ A_c: exactly, in place, from shared read-only arrays.

    probe_set = ProbeSet.build(model, probes, domains)
    reference = ray.put(probe_set)                      # once; every process on a node shares the memory

    model = Interpolator(ray.get(reference))
    model.set(np.array([0.2, 0.8]))
    model.losses({"code": (ids, mask)}, batch_size=16)["code"].mean

An interpolator holds views of the base weights and one private copy of the adapted layers' weights, which is
all it ever writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from opmix_ray.data.held_out import Held
from opmix_ray.errors import UserError
from opmix_ray.model.load import build_empty, fill, model_spec
from opmix_ray.model.loss import (
    SetLoss,
    batches,
    compute_context,
    evaluate_sets,
    has_bfloat16,
    sequence_losses,
)
from opmix_ray.model.probe import Probe
from opmix_ray.model.spread import Devices, Spread
from opmix_ray.model.targets import Target, target


@dataclass(frozen=True)
class ProbeSet:
    """The base model and all probes of a decision, as numpy arrays and plain data.

    Attributes:
        spec: the architecture, see `model_spec`.
        weights: parameter or buffer -> array; bfloat16 as its bits in uint16.
        bfloat16: names of the arrays that hold such bits.
        A: layer -> float32 (C, r, in); of E experts (C, E, r, in).
        B: layer -> float32 (C, out, r); of E experts (C, E, out, r).
        scale: alpha / rank of each probe, float64 (C,).
        components: names of the probes.
        domains: names of the columns of `data`.
        data: share of tokens of each domain that each probe was trained on, float64 (C, D).
    """

    spec: dict[str, Any]
    weights: dict[str, np.ndarray]
    bfloat16: frozenset[str]
    A: dict[str, np.ndarray]
    B: dict[str, np.ndarray]
    scale: np.ndarray
    components: list[str]
    domains: list[str]
    data: np.ndarray

    @classmethod
    def build(cls, model: PreTrainedModel, probes: Sequence[Probe], domains: Sequence[str]) -> ProbeSet:
        """Gather a model and its probes.

        Args:
            model: the model that the probes were trained on, without adapters. On the CPU the arrays are
                views of its weights: `ray.put` the set before the model changes.
            probes: C probes; smaller ranks are filled up with zeros, as are layers that a probe leaves out.
            domains: D names.

        Raises:
            UserError: no probes, two of one name, factors that do not fit the model, a probe trained on a
                domain that is not named, or weights that are neither float32 nor bfloat16.
        """
        names = [probe.name for probe in probes]
        if not names or len(set(names)) < len(names):
            raise UserError("needs at least one probe, and different names", key="probes", value=names)
        spec = model_spec(model)
        weights, bits = arrays_of(model)
        layers = list(dict.fromkeys(layer for probe in probes for layer in probe.factors))
        rank = max(probe.rank for probe in probes)
        a, b = {}, {}
        for layer in layers:
            a[layer], b[layer] = _stack(model, probes, layer, rank)
        return cls(
            spec=spec,
            weights=weights,
            bfloat16=frozenset(bits),
            A=a,
            B=b,
            scale=np.array([probe.scale for probe in probes], dtype=np.float64),
            components=names,
            domains=list(domains),
            data=np.array([_shares(probe, domains) for probe in probes], dtype=np.float64),
        )

    def costs(self) -> dict[str, int]:
        """Bytes that an interpolator needs for each weight: of an adapted layer twice, and its factors."""
        found = {name: array.nbytes for name, array in self.weights.items()}
        for layer in self.A:
            name = layer if layer in self.weights else f"{layer}.weight"
            found[name] = 2 * found.get(name, 0) + self.A[layer].nbytes + self.B[layer].nbytes
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [*self.weights.values(), *self.A.values(), *self.B.values(), self.scale, self.data]
        return sum(array.nbytes for array in arrays)


class Interpolator:
    """One process's model at any interpolation weights.

    Args:
        probe_set: possibly with read-only arrays in shared memory.
        device: where to compute; none: the first GPU, else the CPU. Over several the model's blocks are spread.
        autocast: compute in bfloat16 while the weights stay as they are, where the device computes in that type. The
            private copy is then held in bfloat16, which autocast would cast it to in every pass.
    """

    def __init__(self, probe_set: ProbeSet, *, device: Devices | None = None, autocast: bool = False) -> None:
        self.probe_set = probe_set
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build_empty(probe_set.spec)
        spread = Spread.over(self.model, device, probe_set.costs())
        self.device = spread.first
        tensors = {
            name: view_of(array, name in probe_set.bfloat16).to(spread.device_of(name))
            for name, array in probe_set.weights.items()
        }
        fill(self.model, probe_set.spec, tensors)
        spread.connect(self.model)
        self._layers: dict[str, _Layer] = {}
        found = {name: target(self.model, name) for name in probe_set.A}
        bases = {name: each.weight.data for name, each in found.items()}
        self.autocast = autocast and has_bfloat16(self.device.type)
        cast = self.autocast and self._holds_in_bfloat16(
            [each for each in found.values() if not each.experts]
        )
        for name, each in found.items():
            if not cast or each.experts:
                each.module._parameters[each.leaf] = nn.Parameter(bases[name].clone(), requires_grad=False)
            weight: Any = each.weight
            self._layers[name] = _Layer(
                weight=weight,
                base=bases[name],
                a=view_of(probe_set.A[name], False).to(bases[name].device),
                b=view_of(probe_set.B[name], False).to(bases[name].device),
                transposed=each.transposed,
            )
        largest = max((layer.base.numel() for layer in self._layers.values() if layer.rounds), default=0)
        self._scratch = {
            each: torch.empty(largest, dtype=torch.float32, device=each) for each in spread.devices
        }
        self.w = np.zeros(len(probe_set.components), dtype=np.float64)

    @torch.no_grad()
    def _holds_in_bfloat16(self, layers: Sequence[Target]) -> bool:
        """Put bfloat16 copies of these layers' weights in place, if the model computes with such.

        Autocast casts the float32 weights of Linear and Conv1D layers in every pass, to the same numbers. A model
        that leaves autocast somewhere on its way does not take them; it is put back.
        """
        modules: list[Any] = [layer.module for layer in layers]
        bases = [module.weight for module in modules]
        if any(base.dtype != torch.float32 for base in bases):
            return False
        for module, base in zip(modules, bases, strict=True):
            module.weight = nn.Parameter(base.to(torch.bfloat16), requires_grad=False)
        try:
            with compute_context(True, self.device):
                self.model(input_ids=torch.zeros(1, 4, dtype=torch.long, device=self.device), use_cache=False)
        except RuntimeError:
            for module, base in zip(modules, bases, strict=True):
                module.weight = base
            return False
        return True

    @torch.no_grad()
    def set(self, w: np.ndarray) -> None:
        """Move the model to theta(w).

        Args:
            w: interpolation weights of the components, shape (C,); any finite numbers.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        w = np.asarray(w, dtype=np.float64)
        if w.shape != self.w.shape or not np.isfinite(w).all():
            raise ValueError(f"w must be {self.w.shape[0]} finite numbers, not {w}")
        used = np.flatnonzero(w)
        factor = torch.from_numpy((w * self.probe_set.scale)[used]).to(torch.float32)
        index = None if len(used) == len(w) else torch.from_numpy(used)
        there = {
            each: (factor.to(each), None if index is None else index.to(each), scratch)
            for each, scratch in self._scratch.items()
        }
        for layer in self._layers.values():
            layer.write(*there[layer.base.device])
        self.w = w.copy()

    def losses(self, sets: Mapping[str, Held], batch_size: int) -> dict[str, SetLoss]:
        """Loss of every evaluation set at the present weights; see `evaluate_sets`."""
        return evaluate_sets(self.model, sets, batch_size, autocast=self.autocast)

    def gradients(
        self, sets: Mapping[str, tuple[np.ndarray, np.ndarray]], batch_size: int
    ) -> dict[str, tuple[SetLoss, np.ndarray]]:
        """Loss of every set and its derivative by each component's weight, from one backward pass.

        `dL / dw_c = sum over layers <dL/dW, scale_c B_c A_c>`, with L the set's mean in nats per token.

        Args:
            sets: see `evaluate_sets`.
            batch_size: sequences in one pass.

        Returns:
            Name -> loss, and float64 of shape (C,).
        """
        return {name: self._gradient(ids, mask, batch_size) for name, (ids, mask) in sets.items()}

    def _gradient(self, ids: np.ndarray, mask: np.ndarray, batch_size: int) -> tuple[SetLoss, np.ndarray]:
        total = torch.zeros(len(self.w), dtype=torch.float64, device=self.device)
        nats, tokens = [], []
        with self._collecting(total):
            for batch in batches(ids, mask, batch_size, self.device):
                with compute_context(self.autocast, self.device):
                    sums, counts = sequence_losses(self.model, *batch)
                if sums.requires_grad:
                    sums.sum().backward()
                nats.append(sums.detach().cpu().numpy())
                tokens.append(counts.cpu().numpy())
        loss = SetLoss(np.concatenate(nats), np.concatenate(tokens))
        gradient = total.cpu().numpy() * self.probe_set.scale / max(1, int(loss.tokens.sum()))
        return loss, gradient

    @contextmanager
    def _collecting(self, total: torch.Tensor) -> Iterator[None]:
        """Turn each adapted weight's gradient into (C,) numbers as soon as it is there, and let go of it."""

        def collect(layer: _Layer) -> Any:
            def hook(weight: torch.Tensor) -> None:
                assert weight.grad is not None
                total.add_(layer.along_components(weight.grad).to(total.device))
                weight.grad = None

            return hook

        handles = []
        for layer in self._layers.values():
            layer.weight.requires_grad_(True)
            handles.append(layer.weight.register_post_accumulate_grad_hook(collect(layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in self._layers.values():
                layer.weight.requires_grad_(False)


@dataclass(frozen=True)
class _Layer:
    """One adapted layer: its private weight, and views of its base weight and factors."""

    weight: nn.Parameter
    base: torch.Tensor
    a: torch.Tensor  # (C, r, in), of experts (C, E, r, in)
    b: torch.Tensor  # (C, out, r), of experts (C, E, out, r)
    transposed: bool  # the weight is (in, out)

    @property
    def rounds(self) -> bool:
        """Whether the sum, made in float32, is rounded when stored."""
        return self.weight.dtype != torch.float32

    def write(self, factor: torch.Tensor, index: torch.Tensor | None, scratch: torch.Tensor) -> None:
        """weight = base + sum_c factor_c B_c A_c, in float32, rounded once."""
        if len(factor) == 0:
            self.weight.copy_(self.base)
            return
        a, b = (self.a, self.b) if index is None else (self.a[index], self.b[index])
        scaled = b * factor.view(-1, *[1] * (b.ndim - 1))
        left = scaled.movedim(0, -2).flatten(-2)  # (out, C*r)
        right = a.movedim(0, -3).flatten(-3, -2)  # (C*r, in)
        if self.transposed:
            left, right = right.mT, left.mT
        add = torch.baddbmm if self.base.ndim == 3 else torch.addmm
        if not self.rounds:
            add(self.base, left, right, out=self.weight.data)
            return
        total = scratch[: self.base.numel()].view(self.base.shape)
        total.copy_(self.base)
        add(total, left, right, out=total)
        self.weight.copy_(total)

    def along_components(self, gradient: torch.Tensor) -> torch.Tensor:
        """<gradient, B_c A_c> of every component, float64 (C,)."""
        gradient = gradient.float()
        if self.transposed:
            gradient = gradient.mT
        return (torch.matmul(self.b.mT, gradient) * self.a).double().flatten(1).sum(dim=1)


def arrays_of(model: nn.Module) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters and buffers as arrays, and the names of those that hold bfloat16 bits in uint16.

    On the CPU the arrays are views of the model's memory; tied parameters come once, by their first name.

    Raises:
        UserError: a weight is neither float32 nor bfloat16.
    """
    arrays, bits = {}, []
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise UserError(
                f"has weights of type {parameter.dtype}",
                key=name,
                remedy="load the model in float32 or bfloat16",
            )
    for name, held in [*model.named_parameters(), *model.named_buffers()]:
        tensor: torch.Tensor = held.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            bits.append(name)
            tensor = tensor.view(torch.uint16)
        arrays[name] = tensor.numpy()
    return arrays, bits


def view_of(array: np.ndarray, bfloat16: bool) -> torch.Tensor:
    """A tensor on the array's memory, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def _stack(model: nn.Module, probes: Sequence[Probe], layer: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """One layer's factors of all probes: A (C, r, in) and B (C, out, r); of E experts (C, E, r, in), (C, E, out, r)."""
    found = target(model, layer)
    rows, columns = found.shape
    count = max(1, found.experts)
    a = np.zeros((len(probes), count, rank, columns), dtype=np.float32)
    b = np.zeros((len(probes), count, rows, rank), dtype=np.float32)
    for index, probe in enumerate(probes):
        if layer not in probe.factors:
            continue
        small_a, small_b = probe.factors[layer]
        inner = count * probe.rank
        if small_a.shape != (inner, columns) or small_b.shape != (rows, inner):
            raise UserError(
                f"probe `{probe.name}` is of another shape than the model's layer",
                key=layer,
                remedy="use its own probes",
            )
        a[index, :, : probe.rank] = small_a.reshape(count, probe.rank, columns)
        b[index, :, :, : probe.rank] = small_b.reshape(rows, probe.rank, count).transpose(2, 0, 1)
    return (a, b) if found.experts else (a[:, 0], b[:, 0])


def _shares(probe: Probe, domains: Sequence[str]) -> list[float]:
    unknown = [domain for domain in probe.data if domain not in domains]
    if unknown:
        raise UserError(
            f"probe `{probe.name}` was trained on a domain that is not in the search", key=unknown[0]
        )
    return [probe.data.get(domain, 0.0) for domain in domains]
