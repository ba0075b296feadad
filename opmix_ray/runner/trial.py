"""What every probe needs, tried before time is spent: attached, trained for a step, taken off, added up, measured.

    tried = try_probes(architecture(config.model, ...), config.probe, autocast=config.model.autocast)
    tried.share               # of the model's weights that probes reach
    tried.ran                 # False: too large to be tried as it is, and no small one of its kind could be made

A model of up to `WHOLE` weights is tried itself, with random weights; of a larger one a tiny model of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.interpolate import Interpolator, ProbeSet
from opmix_ray.model.load import is_remote
from opmix_ray.model.loss import compute_context, evaluate_sets, training_loss
from opmix_ray.model.probe import Probe, attach, detach, extract
from opmix_ray.model.targets import adapted_layers, reached
from opmix_ray.model.tiny import tiny_config

WHOLE = 5_000_000  # weights up to which a model is tried as it is
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
    config = probe.but(gpus=0, rank=min(probe.rank, 4))
    if not isinstance(probe.target_modules, str) and not whole:
        config = config.but(target_modules="all-linear")  # its layers may be others
    _try(tried, config, autocast)
    return Tried(share, ran=True)


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


def _ids(model: nn.Module, seed: int) -> torch.Tensor:
    vocab = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return torch.randint(vocab, (2, 8), generator=torch.Generator().manual_seed(seed))


def _held(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    ids = _ids(model, 7).numpy()
    return ids, np.ones(ids.shape, dtype=bool)


def _loss(model: nn.Module, autocast: bool) -> float:
    return evaluate_sets(model, {"text": _held(model)}, 2, autocast=autocast)["text"].mean
