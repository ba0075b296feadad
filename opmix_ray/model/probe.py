"""LoRA probes: put on a model, taken off, kept as plain arrays, exchanged as PEFT directories.

    peft_model = attach(model, config.probe, seed=1)       # train it
    probe = extract(peft_model, name="code", data={"code": 0.9, "prose": 0.1})
    model = detach(peft_model)                             # bit for bit what it was
    save_probe(probe, "probes/code")                       # PeftModel.from_pretrained loads it

A probe's weight change in a layer is `scale * B @ A` with `scale = alpha / rank` (Hu et al. 2021).
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.model.targets import adapted_layers as adapted_layers
from opmix_ray.model.targets import as_peft_has_them, target

ADAPTER = "default"
PREFIX = "base_model.model."
_BASE = re.compile(r"\.base_layer(?=\.|$)")
_RECORDED = ("name", "data", "tokens", "seconds", "flops", "losses")
_EXPERTS = "experts"  # in the record: names of adapted parameters that hold experts, in the model's order
# Layer -> (A (rank, in), B (out, rank)), float32; of E experts (E * rank, in), an expert's rows together, and
# (out, rank * E), an expert's columns E apart, as PEFT has them.
Factors = dict[str, tuple[np.ndarray, np.ndarray]]
WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "probe.json"

# Keys of adapter_config.json that leave the weight change at scale * B @ A; any other must be unset.
_HARMLESS = {
    "alora_invocation_tokens": None,
    "auto_mapping": ...,
    "base_model_name_or_path": ...,
    "bias": "none",
    "exclude_modules": ...,
    "fan_in_fan_out": ...,
    "inference_mode": ...,
    "layers_pattern": ...,
    "layers_to_transform": ...,
    "lora_alpha": ...,
    "lora_dropout": ...,
    "megatron_core": ...,
    "peft_type": "LORA",
    "peft_version": ...,
    "qalora_group_size": ...,
    "r": ...,
    "revision": ...,
    "target_modules": ...,
    "target_parameters": ...,
    "task_type": ...,
}
_HARMLESS_INIT = (True, False, "gaussian", "eva", "orthogonal")  # others change the base weights too


@dataclass
class Probe:
    """One trained adapter and what it cost.

    Attributes:
        name: its component of the search.
        data: share of training tokens by domain, as trained on.
        factors: layer -> (A float32 (rank, in), B float32 (out, rank)).
        scale: alpha / rank.
        rank: inner size of every layer's factors.
        alpha: LoRA alpha.
        target_modules: ends of the adapted layers' names, as PEFT matches them.
        target_parameters: the same of weights that PEFT adapts as parameters, experts above all.
        base_name: the model it belongs to, if it has a name.
        fan_in_fan_out: whether the layers are GPT-2's Conv1D, whose weights are (in, out).
        tokens: tokens trained on.
        seconds: time of training.
        flops: operations of training.
        losses: nats per token at each step.
        measured: set -> held-out loss of the model with the probe on, nats per token; empty where not asked for.
    """

    name: str
    data: dict[str, float]
    factors: Factors
    scale: float
    rank: int
    alpha: float
    target_modules: list[str]
    target_parameters: list[str] = field(default_factory=list)
    base_name: str | None = None
    fan_in_fan_out: bool = False
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    losses: list[float] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)


def base_causal_lm(model: nn.Module) -> Any:
    """The causal LM inside a PeftModel, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def lora_config(probe_config: ProbeConfig, model: nn.Module) -> LoraConfig:
    """The PEFT configuration of a probe on this model: no dropout, no bias, plain LoRA.

    Raises:
        UserError: see `adapted_layers`.
    """
    layers = adapted_layers(model, probe_config.target_modules)
    modules, parameters = as_peft_has_them(model, layers)
    return LoraConfig(
        r=probe_config.rank,
        lora_alpha=probe_config.alpha,  # type: ignore[arg-type]
        target_modules=modules,
        target_parameters=parameters or None,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(isinstance(target(model, name).module, Conv1D) for name in layers),
        task_type="CAUSAL_LM",
    )


def attach(model: nn.Module, probe_config: ProbeConfig, seed: int) -> PeftModel:
    """Put a new probe on a model, in place; its own weights are frozen until `detach`.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)), as PEFT does, from `seed` alone; B is 0. Both are float32,
    whatever the type of the model. The global random state is left as it is.

    Raises:
        UserError: see `adapted_layers`.
    """
    assert not isinstance(model, PeftModel), "one probe at a time: detach the last one first"
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    config = lora_config(probe_config, model)
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config, adapter_name=ADAPTER)  # type: ignore[arg-type]
    assert isinstance(peft_model, PeftModel)
    generator = torch.Generator().manual_seed(seed)
    for a, b in lora_weights(peft_model).values():
        bound = 1.0 / math.sqrt(a.shape[1])
        a.data = (torch.rand(a.shape, generator=generator) * 2 * bound - bound).to(a.device)
        b.data = torch.zeros(b.shape, device=b.device)
    peft_model._opmix_trainable = trainable  # type: ignore[assignment]
    return peft_model


def extract(
    peft_model: PeftModel,
    *,
    name: str,
    data: Mapping[str, float],
    tokens: int = 0,
    seconds: float = 0.0,
    flops: float = 0.0,
    losses: Sequence[float] = (),
) -> Probe:
    """Copy a probe's factors out of a model as arrays.

    Args:
        peft_model: from `attach`, trained.
        name: the component.
        data: share of tokens by domain that it was trained on.
        tokens, seconds, flops, losses: its cost and training losses.
    """
    config: Any = peft_model.peft_config[ADAPTER]
    factors = {layer_name: (_array(a), _array(b)) for layer_name, (a, b) in lora_weights(peft_model).items()}
    return Probe(
        name=name,
        data={domain: float(share) for domain, share in data.items()},
        factors=factors,
        scale=config.lora_alpha / config.r,
        rank=config.r,
        alpha=float(config.lora_alpha),
        target_modules=sorted(config.target_modules or []),
        target_parameters=sorted(config.target_parameters or []),
        base_name=config.base_model_name_or_path or None,
        fan_in_fan_out=config.fan_in_fan_out,
        tokens=tokens,
        seconds=seconds,
        flops=flops,
        losses=[float(loss) for loss in losses],
    )


def lora_weights(peft_model: PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of every adapted layer, the model's own parameters."""
    return {
        name: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        for name, layer in _lora_layers(peft_model).items()
    }


@torch.no_grad()
def put_factors(peft_model: PeftModel, factors: Factors) -> None:
    """Set a probe's weights; the factors must be of a probe of the same shape."""
    for name, pair in lora_weights(peft_model).items():
        for weight, values in zip(pair, factors[name], strict=True):
            weight.copy_(torch.from_numpy(np.array(values)))


def detach(peft_model: PeftModel) -> Any:
    """Take the probe off: returns the model as it was before `attach`, bit for bit."""
    trainable = set(getattr(peft_model, "_opmix_trainable", ()))
    model = peft_model.unload()
    if hasattr(model, "peft_config"):
        del model.peft_config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model


def save_probe(probe: Probe, directory: Path | str, base_model_name: str | None = None) -> None:
    """Write a PEFT directory, and `probe.json` with what PEFT has no place for.

    Args:
        probe: the probe.
        directory: made if needed.
        base_model_name: hub id or directory written as the base model; none: the probe's own.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        r=probe.rank,
        lora_alpha=probe.scale * probe.rank,  # type: ignore[arg-type]
        target_modules=list(probe.target_modules),
        target_parameters=list(probe.target_parameters) or None,
        fan_in_fan_out=probe.fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model_name or probe.base_name,
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    tensors = {}
    experts = [layer for layer in probe.factors if _is_parameter(probe, layer)]
    places = _places(probe.factors, experts)
    for layer, (a, b) in probe.factors.items():
        tensors[f"{PREFIX}{places[layer]}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{PREFIX}{places[layer]}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    record = {key: getattr(probe, key) for key in _RECORDED}
    if experts:
        record[_EXPERTS] = experts
    (directory / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_probe(directory: Path | str) -> Probe:
    """Read a PEFT directory, ours or anybody's; without `probe.json` it has the directory's name and no data.

    Raises:
        UserError: it is missing or broken, or is not plain LoRA with one rank and one alpha, so that its
            weight change is not `scale * B @ A`.
    """
    directory = Path(directory)
    config = _read_json(directory / CONFIG)
    _refuse_other_kinds(config, directory / CONFIG)
    rank, alpha = _number(config, "r", directory), _number(config, "lora_alpha", directory)
    if rank != int(rank) or rank < 1:
        raise UserError("is not a rank", file=directory / CONFIG, key="r", value=rank)
    rank = int(rank)
    record = _read_record(directory / RECORD, directory.name)
    parameters = config.get("target_parameters") or []
    experts = record.pop(_EXPERTS, None)
    if parameters and experts is None and not _only_weights(parameters):
        remedy = "use a probe of this package: PEFT does not note which factors belong to which parameter"
        raise UserError(
            "is not supported",
            file=directory / CONFIG,
            key="target_parameters",
            value=parameters,
            remedy=remedy,
        )
    factors = _read_factors(directory / WEIGHTS, rank, experts or [])
    targets = config.get("target_modules")
    return Probe(
        factors=factors,
        scale=alpha / rank,
        rank=rank,
        alpha=alpha,
        target_modules=sorted(targets) if isinstance(targets, list) else sorted(factors),
        target_parameters=sorted(parameters),
        base_name=config.get("base_model_name_or_path"),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        **record,
    )


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """LoRA layers by the name they have without adapters; of several around a module the innermost first."""
    around: dict[str, list[Any]] = {}
    for place, module in model.named_modules():
        if isinstance(module, LoraLayer):
            around.setdefault(_BASE.sub("", place.removeprefix(PREFIX)), []).append(module)
    found = {}
    for name, modules in around.items():
        for module in reversed(modules):
            alone = isinstance(module.get_base_layer(), nn.Linear | Conv1D)
            found[name if alone else f"{name}.{module.parameter_name}"] = module
    return found


def _only_weights(parameters: Any) -> bool:
    """Whether parameters that PEFT adapts are the weights of layers, each alone in its module."""
    return isinstance(parameters, list) and all(str(name).endswith(".weight") for name in parameters)


def _is_parameter(probe: Probe, layer: str) -> bool:
    """Whether a layer is a parameter by its own name: experts."""
    return any(f".{layer}".endswith(f".{end}") for end in probe.target_parameters)


def _places(layers: Iterable[str], experts: Iterable[str]) -> dict[str, str]:
    """Where PEFT has each layer's factors: it wraps a module once for each of its parameters, the first innermost."""
    owners: dict[str, list[str]] = {}
    for name in experts:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    places = {layer: layer for layer in layers}
    for owner, names in owners.items():
        for depth, name in enumerate(reversed(names)):
            places[name] = owner + ".base_layer" * depth
    return places


def _array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().to("cpu", torch.float32, copy=True).numpy()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", file=file, remedy="name a directory written by PEFT") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", file=file) from None
    if not isinstance(tree, dict):
        raise UserError("must hold a mapping", file=file)
    return tree


def _number(config: Mapping[str, Any], key: str, directory: Path) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError("is not a number", file=directory / CONFIG, key=key, value=value)
    return float(value)


def _read_record(file: Path, name: str) -> dict[str, Any]:
    """What a probe's record says of it; of one that has no record, its name alone."""
    found: dict[str, Any] = _read_json(file) if file.exists() else {}
    record = {"name": name, "data": {}, "tokens": 0, "seconds": 0.0, "flops": 0.0, "losses": []} | found
    numbers = [record["tokens"], record["seconds"], record["flops"]]
    if isinstance(record["data"], dict) and isinstance(record["losses"], list):
        numbers += [*record["data"].values(), *record["losses"]]
        known = set(record) - {_EXPERTS} == set(_RECORDED) and isinstance(record["name"], str)
        experts = record.get(_EXPERTS, [])
        known = known and isinstance(experts, list) and all(isinstance(each, str) for each in experts)
        if known and all(isinstance(number, int | float) for number in numbers):
            return record
    raise UserError("is not a probe's record", file=file, remedy="delete it, or restore the file")


def _refuse_other_kinds(config: Mapping[str, Any], file: Path) -> None:
    remedy = "probes must be plain LoRA, so that weight changes can be added up exactly"
    for key, value in config.items():
        allowed = _HARMLESS.get(key)
        if key == "init_lora_weights":
            accepted = value in _HARMLESS_INIT
        else:
            accepted = allowed is ... or value == allowed or (not value and key not in ("peft_type", "bias"))
        if not accepted:
            raise UserError("is not supported", file=file, key=key, value=value, remedy=remedy)
    for key in ("peft_type", "r", "lora_alpha"):
        if not config.get(key):
            raise UserError("is missing", file=file, key=key, remedy=remedy)


def _read_factors(file: Path, rank: int, experts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise UserError("no such file", file=file, remedy="save it with safe_serialization=True") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read: {error}", file=file) from None
    names = {place: name for name, place in _places(experts, experts).items()}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        place, _, kind = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or tensor.ndim != 2:
            raise UserError("is not a factor of a linear layer", file=file, key=key)
        layers.setdefault(names.get(place, place), {})[kind] = _array(tensor)
    factors = {}
    for layer in [*(name for name in layers if name not in experts), *experts]:
        pair = layers.get(layer, {})
        sizes = (pair["lora_A"].shape[0], pair["lora_B"].shape[1]) if len(pair) == 2 else (0, 0)
        fits = sizes[0] == rank or (layer in experts and sizes[0] > 0 and sizes[0] % rank == 0)
        if not fits or sizes[0] != sizes[1]:
            raise UserError(f"the factors are not a pair of rank {rank}", file=file, key=layer)
        factors[layer] = (pair["lora_A"], pair["lora_B"])
    return factors
