"""A causal language model from a hub id, a directory, a GGUF file or a configuration.

model = load_model(config.model, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, seed=0)
save_model(model, "out/model")

spec = model_spec(model)          # plain data, travels to other processes
empty = build_empty(spec)         # the same architecture, parameters on the meta device
fill(empty, spec, parameters)     # parameters put in place, tied ones once
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging, quantization_config

from opmix_ray.config import ModelConfig
from opmix_ray.errors import UserError, first_line
from opmix_ray.storage import check_sealed, is_sealed

SHOWN = 3  # missing weights that an error names
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    config: ModelConfig, *, vocab_size: int, eos_token_id: int, seed: int, seq_len: int | None = None
) -> PreTrainedModel:
    """Load a pretrained model or make one with fresh weights; on the CPU, in evaluation mode.

    Args:
        config: where the model comes from and the type its weights are held in.
        vocab_size: number of the tokenizer's tokens.
        eos_token_id: id of the tokenizer's end-of-text token.
        seed: seed of fresh weights; the global random state is left as it is.
        seq_len: tokens in a sequence, checked against learned position embeddings.

    Raises:
        UserError: neither or both of `path` and `config`; a model that cannot be found, read or built;
            an embedding smaller than the tokenizer's vocabulary; fewer positions than `seq_len`.
    """
    if (config.path is None) == (config.config is None):
        raise UserError(
            "needs either `path` or `config`" if config.path is None else "has both `path` and `config`",
            key="model",
            remedy="give `model.path` for a pretrained model or `model.config` for fresh weights",
        )
    fresh = config.path is None
    model = _fresh(config, vocab_size, eos_token_id, seed) if fresh else _pretrained(config)
    _check_sizes(model, vocab_size, seq_len)
    model.config.use_cache = False
    _train_every_embedding(model)
    return model.eval()


def set_recompute(model: PreTrainedModel, recompute: bool) -> None:
    """Let the backward pass compute a layer's inside again from its input, instead of keeping it.

    Args:
        model: to be trained.
        recompute: `model.recompute` of the configuration.

    Raises:
        UserError: the model's code has no such way.
    """
    if not recompute:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that every version 5 knows
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        kind = model.config.model_type
        raise UserError(
            "the model cannot do that", key="model.recompute", value=kind, remedy="leave it out"
        ) from None


def save_model(model: PreTrainedModel, directory: Path | str) -> None:
    """Write a directory that `from_pretrained` loads: config.json and safetensors."""
    model.save_pretrained(str(directory))


def model_spec(model: PreTrainedModel) -> dict[str, Any]:
    """All that is needed to build the model's architecture elsewhere, as plain data.

    Returns:
        `model_type`; `config`, the transformers configuration; `remote`, the place of model code that comes
        with the weights, or None; `tied`, from each further name of a shared parameter to its first name.
    """
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    remote = model.config.name_or_path if is_remote(model) else None
    return {
        "model_type": model.config.model_type,
        "config": model.config.to_dict(),
        "remote": remote,
        "tied": tied,
    }


def is_remote(model: nn.Module) -> bool:
    """Whether a model's code came with its weights, which `trust_remote_code` has allowed.

    A configuration may name such code where it was not run, so the class is asked.
    """
    return type(model).__module__.startswith("transformers_modules.")


def build_empty(spec: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model's architecture without memory for its parameters, which are on the meta device.

    Args:
        spec: from `model_spec`.
    """
    remote = spec["remote"]
    if remote:
        kind = type(AutoConfig.from_pretrained(remote, trust_remote_code=True))
    else:
        kind = CONFIG_MAPPING[spec["model_type"]]
    config = kind.from_dict(dict(spec["config"]))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=bool(remote))
    _train_every_embedding(model)
    return model.eval()


def fill(
    model: nn.Module,
    spec: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    *,
    trainable: bool = False,
) -> None:
    """Put tensors in the place of a model's parameters and buffers, without copying them.

    Args:
        model: from `build_empty`.
        spec: the same specification.
        parameters: every parameter by its first name, and every buffer that differs from a fresh model's.
        trainable: whether the parameters take gradients.
    """
    placed: dict[str, nn.Parameter] = {}
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        source = spec["tied"].get(name, name)
        if source not in placed:
            placed[source] = nn.Parameter(parameters[source], requires_grad=trainable)
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = placed[source]
    for name, _ in list(model.named_buffers(remove_duplicate=False)):
        if name in parameters:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = parameters[name]


def _fresh(config: ModelConfig, vocab_size: int, eos_token_id: int, seed: int) -> PreTrainedModel:
    tree = dict(config.config or {})
    model_type = tree.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type or ""), list(CONFIG_MAPPING), n=1)
        raise UserError(
            "is missing" if model_type is None else "is not a model type of transformers",
            key="model.config.model_type",
            value=model_type,
            remedy=f"did you mean `{near[0]}`?" if near else "for example `llama`",
        )
    _check_keys(tree, CONFIG_MAPPING[model_type])
    # A padding id would make transformers zero that token's embedding and keep it from learning.
    tree |= {"vocab_size": vocab_size, "bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    tree |= {"pad_token_id": None, "use_cache": False}
    try:
        built = AutoConfig.for_model(model_type, **tree)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                built, dtype=DTYPES[config.dtype], trust_remote_code=config.trust_remote_code
            )
    except Exception as error:
        raise UserError(
            f"no causal language model can be built from this: {error}",
            key="model.config",
            remedy=f"see the `{model_type}` configuration in the documentation of transformers",
        ) from error
    model.generation_config.pad_token_id = eos_token_id
    return model


def _check_keys(tree: Mapping[str, Any], kind: type[PretrainedConfig]) -> None:
    """Refuse keys that the configuration class does not know: transformers keeps them without a word."""
    known = {*kind().to_dict(), *getattr(kind, "__dataclass_fields__", {}), *kind.attribute_map}
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UserError(
                "unknown key",
                key=f"model.config.{key}",
                remedy=f"did you mean `{near[0]}`?" if near else f"see {kind.__name__} of transformers",
            )


def _pretrained(config: ModelConfig) -> PreTrainedModel:
    path = str(config.path)
    local = Path(os.path.expanduser(path))
    if local.is_file():
        raise UserError(
            "is a file", key="model.path", value=path, remedy="name its directory (and `gguf_file`)"
        )
    if (local / "adapter_config.json").exists():
        raise UserError(
            "is an adapter, not a model", key="model.path", value=path, remedy="name the model it belongs to"
        )
    if config.gguf_file is not None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                "needs the package `gguf`",
                key="model.gguf_file",
                remedy="pip install 'opmix_ray[gguf]'",
            )
        if local.is_dir() and not (local / config.gguf_file).is_file():
            raise UserError(f"no such file in {local}", key="model.gguf_file", value=config.gguf_file)
    if is_sealed(local):
        check_sealed(
            local,
            remedy="restore it, or run again with --resume; delete checksums.json if you changed it yourself",
        )
    options = _dense_gguf(config.gguf_file) if config.gguf_file else {}
    try:
        with _without_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(local) if local.exists() else path,
                dtype=DTYPES[config.dtype],
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise no_causal_lm("loaded", path, error) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"its files lack {len(missing)} of the model's weights ({', '.join(missing[:SHOWN])}"
            f"{', ...' if len(missing) > SHOWN else ''}), which would be random",
            key="model.path",
            value=path,
            remedy="fetch or save the model again, whole and with its head",
        )
    if left := sorted(found["unexpected_keys"]):
        _refuse_cut_off(model.config, left, path)
        logging.get_logger(__name__).warning(
            "%s: %d weights of its files have no place in the model and are left out: %s%s",
            path, len(left), ", ".join(left[:SHOWN]), ", ..." if len(left) > SHOWN else "",
        )  # fmt: skip
    if config.gguf_file:
        return _without_quantizer(model)
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            "has quantised weights, which cannot be trained",
            key="model.path",
            value=path,
            remedy="name the model in float32 or bfloat16",
        )
    return model


def _refuse_cut_off(config: Any, left: list[str], path: str) -> None:
    """Refuse a configuration with fewer layers than the files hold: the rest would go without a word."""
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0))
    numbers = [
        int(found[1]) for name in left if (found := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name))
    ]
    if layers and numbers and max(numbers) >= layers:
        raise UserError(
            f"config.json names {layers} layers and the files hold {max(numbers) + 1}",
            key="model.path",
            value=path,
            remedy="correct num_hidden_layers, or save the shorter model with save_pretrained if that is meant",
        )


def no_causal_lm(done: str, path: str, error: Exception) -> UserError:
    """The error for what cannot be `done` (loaded, built) as a causal language model."""
    return UserError(
        f"cannot be {done} as a causal language model: {first_line(error)}",
        key="model.path",
        value=path,
        remedy="give a directory with config.json and weights, or a hub id that this machine can reach",
    )


@contextmanager
def _without_bar() -> Iterator[None]:
    """No bar for every loading of the same weights; a run shows its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dense_gguf(gguf_file: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that unpack a GGUF file; newer versions would keep it packed."""
    packed = getattr(quantization_config, "GgufConfig", None)
    if packed is None:
        return {"gguf_file": gguf_file}
    return {"gguf_file": gguf_file, "quantization_config": packed(dequantize=True)}


def _without_quantizer(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a plain model that can be trained and saved."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    spec = model_spec(model)
    plain = build_empty(spec)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fill(plain, spec, tensors | dict(model.named_buffers()), trainable=True)
    plain.config.name_or_path = model.config.name_or_path
    plain.generation_config = model.generation_config
    return plain


def _check_sizes(model: PreTrainedModel, vocab_size: int, seq_len: int | None) -> None:
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if rows < vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, the model's embedding only {rows}",
            key="model.path",
            remedy="use the model's own tokenizer (leave out `tokenizer`)",
        )
    for module in model.modules():
        if seq_len is None or not isinstance(module, nn.Embedding) or module is embedding:
            continue
        if 16 < module.num_embeddings < seq_len:
            raise UserError(
                f"the model has positions for {module.num_embeddings} tokens only",
                key="data.seq_len",
                value=seq_len,
                remedy=f"set at most {module.num_embeddings}, or more positions in `model.config`",
            )


def _train_every_embedding(model: PreTrainedModel) -> None:
    """Let the padding token learn: it often is the end-of-text token, and sequences have no padding."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None
