"""Which weights of a model a probe adapts: those whose change `scale * B @ A` can be trained and added up exactly.

    names = adapted_layers(model, "all-linear")       # "layers.0.mlp.up_proj", "layers.1.mlp.experts.down_proj", ...
    target(model, names[0]).shape                     # (rows, columns)
    reached(model, names)                             # share of the model's weights

Linear and Conv1D layers are named as modules; experts that lie in one parameter (experts, rows, columns) by that
parameter's name. What a LoRA would not be felt in is left out: weights that their owner reads itself, as Mamba's
kernels do, layers that compute something else than a product, and weights that are used in several places.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import tuners_utils
from torch import nn
from transformers.pytorch_utils import Conv1D

from opmix_ray.errors import UserError

_BUILDING = ("__init__", "_init", "init", "reset", "extra_repr")  # beginnings of methods that compute nothing
_READ = re.compile(r"\bself\.(\w+)\.(\w+)\b(?!\()")
_BY_NAME = re.compile(r"\bself\.(\w+)\(\s*\w+\s*=(?!=)")  # calls that give no argument by place
# Names that PEFT takes for parts of experts in models of some kinds, wherever they are.
_RENAMED = {"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}


@dataclass(frozen=True)
class Target:
    """One weight that a probe adapts.

    Attributes:
        name: of the layer, or of the parameter that holds experts.
        module: that holds the weight.
        leaf: the weight's name in it.
        transposed: whether the weight is (columns, rows), with experts (experts, columns, rows).
        experts: matrices in it; 0: it is one matrix.
    """

    name: str
    module: nn.Module
    leaf: str
    transposed: bool
    experts: int

    @property
    def weight(self) -> torch.Tensor:
        """The weight itself."""
        found: torch.Tensor = getattr(self.module, self.leaf)
        return found

    @property
    def parameter(self) -> str:
        """The weight's name in the model."""
        return self.name if self.experts else f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of each matrix: B is (rows, rank), A is (rank, columns)."""
        rows, columns = self.weight.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def width(self) -> int:
        """Numbers in A and B for each unit of rank."""
        return max(1, self.experts) * sum(self.shape)


def target(model: nn.Module, name: str) -> Target:
    """The weight of this name.

    Raises:
        UserError: the model has no such weight that a probe can adapt.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        owner, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            raise _unknown(name) from None
        weight = module._parameters.get(leaf)
        if weight is None or weight.ndim != 3:
            raise _unknown(name) from None
        # As PEFT reads it: (experts, rows, columns) unless the module says otherwise.
        return Target(name, module, leaf, bool(getattr(module, "is_transposed", False)), len(weight))
    if not isinstance(module, nn.Linear | Conv1D):
        raise _unknown(name)
    return Target(name, module, "weight", isinstance(module, Conv1D), 0)


def adapted_layers(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """Names of the weights that a probe adapts, in the model's order.

    Args:
        model: causal LM without adapters.
        target_modules: `all-linear` for every one that can be adapted but the head, or ends of names.

    Raises:
        UserError: a name matches no such weight, or one that cannot be adapted, or there is none at all.
    """
    there = candidates(model)
    if isinstance(target_modules, str):
        head = model.get_output_embeddings()  # type: ignore[operator]
        inside = f"{_name_of(model, head)}."
        found = [name for name, why in there.items() if not why and not f"{name}.".startswith(inside)]
        if not found:
            raise UserError(
                "no weight of this model can be adapted by a probe",
                key="model",
                remedy="take another model, or leave decide_at out",
            )
        return found
    chosen = {end: [name for name in there if f".{name}".endswith(f".{end}")] for end in target_modules}
    for end, names in chosen.items():
        if not names:
            ends = sorted({name.rpartition(".")[2] for name, why in there.items() if not why})
            raise UserError(
                "matches no linear layer of the model",
                key="probe.target_modules",
                value=end,
                remedy=f"the model has {', '.join(ends)}",
            )
        for name in names:
            if there[name]:
                raise UserError(there[name], key="probe.target_modules", value=name, remedy="leave it out")
    wanted = {name for names in chosen.values() for name in names}
    return [name for name in there if name in wanted]


def reached(model: nn.Module, names: Sequence[str]) -> float:
    """Share of a model's weights that lie in the weights of these names."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return sum(target(model, name).weight.numel() for name in names) / total if total else 0.0


def candidates(model: nn.Module) -> dict[str, str]:
    """Every matrix and every row of experts, in the model's order -> why it cannot be adapted; empty if it can."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    shared = _shared(model)
    refused = _refused(model)
    found = {}
    for name, module in model.named_modules():
        owner_name, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear | Conv1D):
            owner = model.get_submodule(owner_name)
            if module is head and getattr(embedding, "weight", None) is module.weight:
                why = "the head shares its weights with the embedding and cannot be adapted alone"
            elif type(module).forward not in (nn.Linear.forward, Conv1D.forward):
                why = f"{type(module).__name__} computes more than a product"
            elif id(module.weight) in shared:
                why = "its weight is used in several places"
            elif (leaf, "weight") in _reads(type(owner)) or refused(leaf):  # type: ignore[arg-type]
                why = f"{type(owner).__name__} reads its weight itself, so that a LoRA would not be felt"
            else:
                why = ""
            found[name] = why
        elif not _is_builtin(module) and module is not model and not isinstance(module, nn.Embedding):
            for own, parameter in module._parameters.items():
                if parameter is None or parameter.ndim != 3 or min(parameter.shape[1:]) < 2:
                    continue
                owner = model.get_submodule(owner_name)
                if not _takes_states(type(module)) or leaf in _called_by_name(type(owner)):  # type: ignore[arg-type]
                    why = f"{type(module).__name__} is not called with hidden states"
                elif id(parameter) in shared:
                    why = "its weight is used in several places"
                elif (leaf, own) in _reads(type(owner)) or refused(leaf):  # type: ignore[arg-type]
                    why = f"{type(owner).__name__} reads its weight itself, so that a LoRA would not be felt"
                else:
                    why = ""
                found[f"{name}.{own}"] = why
    return found


def as_peft_has_them(model: nn.Module, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` and `target_parameters` for weights: last parts of names where these say it all.

    Beside experts, PEFT takes some names of layers for those of the experts; such layers are given as parameters.
    """
    found = [target(model, name) for name in names]
    experts = any(parameter.ndim == 3 for parameter in model.parameters())
    as_parameters = [each.experts > 0 or (experts and _leaf(each.name) in _RENAMED) for each in found]
    modules = [each.name for each, other in zip(found, as_parameters, strict=True) if not other]
    parameters = [each.parameter for each, other in zip(found, as_parameters, strict=True) if other]
    every_module = [name for name, _ in model.named_modules()]
    every_parameter = [name for name, _ in model.named_parameters()]
    return _shortest(modules, every_module), _shortest(parameters, every_parameter, parts=2)


def _shortest(names: list[str], every: list[str], parts: int = 1) -> list[str]:
    """Last parts of the names where these match the names and nothing else, else the whole names."""
    ends = sorted({".".join(name.split(".")[-parts:]) for name in names})
    matched = [name for name in every if any(f".{name}".endswith(f".{end}") for end in ends)]
    return ends if sorted(matched) == sorted(names) else list(names)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _name_of(model: nn.Module, module: Any) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _is_builtin(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _shared(model: nn.Module) -> set[int]:
    """Parameters that have several names, in one module or in several."""
    seen: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _refused(model: nn.Module) -> Callable[[str], bool]:
    """Whether PEFT refuses layers of a name in a model of this kind."""
    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)

    def refused(leaf: str) -> bool:
        try:
            if check is not None:
                check(LoraConfig(), model, leaf)
        except ValueError:
            return True
        return False

    return cache(refused)


@cache
def _reads(kind: type[nn.Module]) -> frozenset[tuple[str, str]]:
    """(child, attribute) pairs that a module's own code reads where it computes: `self.out_proj.weight`."""
    return frozenset(pair for source in _sources(kind) for pair in _READ.findall(source))


@cache
def _takes_states(kind: type[nn.Module]) -> bool:
    """Whether a module's forward has a first argument, as PEFT's wrapper of a parameter gives it."""
    names = list(inspect.signature(kind.forward).parameters)
    return len(names) > 1


@cache
def _called_by_name(kind: type[nn.Module]) -> frozenset[str]:
    """Children that a module's own code calls with named arguments alone; PEFT wraps none of these."""
    return frozenset(child for source in _sources(kind) for child in _BY_NAME.findall(source))


def _sources(kind: type[nn.Module]) -> Iterator[str]:
    for each in kind.__mro__:
        if each is nn.Module:
            return
        for name, method in vars(each).items():
            if inspect.isfunction(method) and not name.startswith(_BUILDING):
                try:
                    yield inspect.getsource(method)
                except (OSError, TypeError):  # code that was not read from a file
                    continue


def _unknown(name: str) -> UserError:
    return UserError("the model has no such linear layer", key=name, remedy="use its own probes")
