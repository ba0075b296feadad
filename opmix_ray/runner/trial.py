"""What every probe needs, tried before time is spent: attached, trained for a step, taken off, added up, measured.

    tried = try_probes(architecture(config.model, ...), config.probe, autocast=config.model.autocast)
    tried.share               # of the model's weights that probes reach
    tried.ran                 # False: too large to be tried as it is, and no small one of its kind could be made

A model of up to `WHOLE` weights is tried itself, with random weights; of a larger one a tiny model of its kind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.load import is_remote
from opmix_ray.model.loss import compute_context, evaluate_sets, training_loss
from opmix_ray.model.probe import Probe, attach, detach, extract
from opmix_ray.model.targets import adapted_layers, reached

# Keys of transformers' configurations that say how large a model is, and a small value that goes with the others.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "shared_intermediate_size"], 48),
    **dict.fromkeys(
        ["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 24
    ),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "n_kv_heads"], 2),
    **dict.fromkeys(["head_dim"], 8),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "v_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 4),
    **dict.fromkeys(["state_size", "ssm_state_size", "mamba_d_state", "time_step_rank"], 8),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 96),
    **dict.fromkeys(["n_group", "topk_group"], 1),
}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
# After so many layers one of another kind comes.
_PERIODS = ("attn_layer_period", "expert_layer_period", "full_attention_interval", "sliding_window_pattern")
_KINDS = 4  # more different values in a list than that are no kinds of layers
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with small sizes, in each of its parts."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        _shrink(part)
    return small


def _inner(config: PretrainedConfig) -> int:
    """Width inside a state space layer of Mamba's kind."""
    expand = next((e for name in ("expand", "mamba_expand") if (e := getattr(config, name, None))), 2)
    return int(expand * config.hidden_size)


# Sizes that follow from others.
_TOGETHER: dict[str, Callable[[Any], int]] = {
    "rotary_dim": lambda config: 4,
    "mamba_d_ssm": _inner,
    "mamba_d_head": lambda config: 8,
    "mamba_headdim": lambda config: 8,
    "mamba_head_dim": lambda config: 8,
    "mamba_n_heads": lambda config: _inner(config) // 8,
    "n_mamba_heads": lambda config: _inner(config) // 8,
    "mamba_num_heads": lambda config: _inner(config) // 8,
    "attention_hidden_size": lambda config: 2 * config.hidden_size,
    "attention_head_dim": lambda config: 2 * config.hidden_size // config.num_attention_heads,
    "qk_rope_head_dim": lambda config: _rotated(config),
}


def _rotated(config: PretrainedConfig) -> int:
    """Latent attention: what is rotated is a part of each head, and `head_dim` another name for it."""
    rotated = int(config.qk_rope_head_dim)
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = rotated
    if getattr(config, "qk_head_dim", None) is not None:
        config.qk_head_dim = rotated + config.qk_nope_head_dim
    return rotated


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _shrink(config: PretrainedConfig) -> None:
    known = {*vars(config), *config.attribute_map}
    if config.model_type == "mamba2":
        config.num_heads, config.head_dim = 8, 8
    for name in _DEPTHS:
        deep = getattr(config, name, None) if name in known else None
        if isinstance(deep, int) and not isinstance(deep, bool) and deep > 2:
            _cut(config, name, deep)
    for name, value in _SIZES.items():
        there = getattr(config, name, None) if name in known else None
        if isinstance(there, int) and not isinstance(there, bool) and there > value:
            setattr(config, name, value)
    for name, value in _TOGETHER.items():
        if name in known and getattr(config, name, None) is not None:
            setattr(config, name, value(config))
    for name in _IDS:
        there = getattr(config, name, None)
        if isinstance(there, int) and there >= _SIZES["vocab_size"]:
            setattr(config, name, None if name == "pad_token_id" else 0)


def _cut(config: PretrainedConfig, name: str, deep: int) -> None:
    """The first layers of a model, as many as show each kind of layer that it has."""
    dense = getattr(config, "first_k_dense_replace", None)
    if isinstance(dense, int) and dense > 1:
        config.first_k_dense_replace = 1
    lists = {
        key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == deep
    }
    least = [2]
    for value in lists.values():
        if all(isinstance(each, str | int | bool) for each in value):
            least += [value.index(kind) + 1 for kind in set(value) if len(set(value)) <= _KINDS]
    for period in _PERIODS:
        every = getattr(config, period, None)
        if isinstance(every, int) and not isinstance(every, bool):
            least.append(every)
    kept = min(deep, max(least))
    setattr(config, name, kept)
    for key, value in lists.items():
        setattr(config, key, value[:kept])


WHOLE = 5_000_000  # weights up to which a model is tried as it is
_ROUNDING = 1e-5  # of the largest logit; random weights attend to all tokens alike, and move by some 1e-3
_CLOSE = 1e-3  # relative difference of losses that rounding explains


@dataclass(frozen=True)
class Tried:
    """What came of it.

    Attributes:
        share: of the model's weights that probes reach.
        ran: whether a model was run.
    """

    share: float
    ran: bool


_known: dict[tuple[Any, ...], Tried] = {}  # what came of those that this process has tried


def try_probes(model: PreTrainedModel, probe: ProbeConfig, *, autocast: bool) -> Tried:
    """Try what a decision does with a model of this kind; once in a process, which may check many runs of one model.

    Args:
        model: its architecture; parameters may be on the meta device.
        probe: as the run trains it.
        autocast: compute in bfloat16.

    Raises:
        UserError: it cannot be done, in one line.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), probe.model_dump_json(), autocast)
    if key not in _known:
        with _quiet():
            _known[key] = _tried(model, probe, autocast)
    return _known[key]


def _tried(model: PreTrainedModel, probe: ProbeConfig, autocast: bool) -> Tried:
    share = reached(model, adapted_layers(model, probe.target_modules))
    whole = sum(parameter.numel() for parameter in model.parameters()) <= WHOLE
    try:
        tried = _made(model, whole=whole)
        losses = _loss(tried, autocast)
    except Exception as error:
        if whole:
            raise _cannot(model, "compute a loss", error) from error
        return Tried(share, ran=False)  # sizes that do not go together say nothing about the model
    if not np.isfinite(losses):
        return Tried(share, ran=False)
    if _sees_ahead(tried):
        raise _not_causal(model)
    listed = not isinstance(probe.target_modules, str)
    layers = (
        "all-linear" if listed and not whole else probe.target_modules
    )  # of a tiny one they may be others
    _try(tried, probe.but(gpus=0, rank=min(probe.rank, 4), target_modules=layers), autocast)
    return Tried(share, ran=True)


def try_model(model: PreTrainedModel) -> None:
    """Try whether a model of this kind sees no more than it may, where no decision asks for `try_probes`.

    Raises:
        UserError: what it says of a token depends on later ones.
    """
    whole = sum(parameter.numel() for parameter in model.parameters()) <= WHOLE
    with _quiet():
        try:
            ahead = _sees_ahead(_made(model, whole=whole))
        except Exception:  # sizes that do not go together say nothing about the model
            return
    if ahead:
        raise _not_causal(model)


def _sees_ahead(model: PreTrainedModel) -> bool:
    """Whether another last token changes what a model says before it."""
    first = _ids(model, 3)
    second = first.clone()
    second[:, -1] = (second[:, -1] + 1) % _vocabulary(model)
    with torch.inference_mode():
        one, other = (model(input_ids=ids).logits[:, :-1].float() for ids in (first, second))
    return float((one - other).abs().max()) > _ROUNDING * float(one.abs().max())


def _not_causal(model: PreTrainedModel) -> UserError:
    return UserError(
        "sees the tokens that it is to predict",
        key="model", value=model.config.model_type,
        remedy="take a model that is made to continue text, or set model.config.is_decoder to true",
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' words about kernels that are not installed: the run itself says them."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _try(model: PreTrainedModel, config: ProbeConfig, autocast: bool) -> None:
    """All of it, on a model that can be run."""
    probes, alone = [], []
    for number in range(2):
        adapted = _step("put a probe on it", model, lambda: attach(model, config, seed=number))  # noqa: B023
        _step("train a probe", model, lambda: _train(adapted, number, autocast))  # noqa: B023
        alone.append(_loss(adapted, False))
        probes.append(
            _step("read a probe", model, lambda: extract(adapted, name=str(number), data={"text": 1.0}))  # noqa: B023
        )
        detach(adapted)
    _step("add probes up", model, lambda: _add_up(model, probes, alone, autocast))


def _train(adapted: nn.Module, seed: int, autocast: bool) -> None:
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    adapted.train()
    for step in range(2):  # in the first step only B moves, since it is 0
        ids = _ids(adapted, seed + step)
        with compute_context(autocast, "cpu"):
            nats = training_loss(adapted, ids, torch.ones_like(ids, dtype=torch.bool))[0]
        nats.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    adapted.eval()


def _add_up(model: PreTrainedModel, probes: list[Probe], alone: list[float], autocast: bool) -> None:
    probe_set = ProbeSet.build(model, probes, ["text"])
    added = Interpolator(probe_set, device="cpu")
    for number, expected in enumerate(alone):
        added.set(np.eye(2)[number])
        found = _loss(added.model, False)
        if not abs(found - expected) <= _CLOSE * max(1.0, abs(expected)):
            raise ValueError(f"a sum gives a loss of {found:.5f}, the probe itself {expected:.5f}")
    quick = Interpolator(probe_set, device="cpu", autocast=autocast)
    quick.set(np.array([0.5, 0.5]))
    quick.losses({"text": _held(quick.model)}, 2)


def _step(what: str, model: PreTrainedModel, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise _cannot(model, what, error) from error


def _cannot(model: PreTrainedModel, what: str, error: Exception) -> UserError:
    said = error.problem if isinstance(error, UserError) else first_line(error)
    return UserError(
        f"decisions cannot be made with this model: one cannot {what}: {said}",
        key="model",
        value=model.config.model_type,
        remedy="take another model, name other probe.target_modules, or leave decide_at out",
    )


def _made(model: PreTrainedModel, *, whole: bool) -> PreTrainedModel:
    """A model to be tried, with random weights in float32 on the CPU."""
    config = model.config if whole else tiny_config(model.config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=is_remote(model)
        )
    made.config.use_cache = False
    return made.eval()


def _vocabulary(model: nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _ids(model: nn.Module, seed: int) -> torch.Tensor:
    return torch.randint(_vocabulary(model), (2, 8), generator=torch.Generator().manual_seed(seed))


def _held(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    ids = _ids(model, 7).numpy()
    return ids, np.ones(ids.shape, dtype=bool)


def _loss(model: nn.Module, autocast: bool) -> float:
    return evaluate_sets(model, {"text": _held(model)}, 2, autocast=autocast)["text"].mean
