"""What the main run needs to go on: weights, optimiser, random states, sampler and the rows written so far.

A checkpoint is a directory: `model/` (Hugging Face), `optimizer.pt`, `rng.pt`, `state.json`, and
`checksums.json` of all these files, without which it does not count. Nothing in it is unpickled into code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from opmix_ray.checksums import seal
from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.load import save_model
from opmix_ray.record import checked

_EARLIER = "resume from an earlier run"


@dataclass
class TrainState:
    """Where a segment stands.

    Args:
        step: global steps done.
        sampler: `SamplerState.to_dict()`.
        rows: rows of metrics.jsonl since the segment began.
        tokens: trained on since the segment began.
        seconds: of all workers together since the segment began.
        segment: name of the segment that wrote it.
        partial: nats and target tokens since the last row, over all workers.
        domains: `DomainLosses.to_dict()`, the training loss by domain since the segment began.
        live: what a live strategy remembers.
        side: tokens passed forward beside training since the segment began, by purpose in the ledger.
    """

    step: int = 0
    sampler: dict[str, Any] = field(default_factory=lambda: SamplerState().to_dict())
    rows: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    segment: str = ""
    partial: list[float] = field(default_factory=lambda: [0.0, 0.0])
    domains: dict[str, Any] = field(default_factory=dict)
    live: dict[str, Any] = field(default_factory=dict)
    side: dict[str, int] = field(default_factory=dict)


def write_checkpoint(
    directory: Path, model: Any, weights: dict[str, torch.Tensor] | None, optimizer: dict[str, Any],
    rng: list[Any], state: TrainState,
) -> None:  # fmt: skip
    """Write a checkpoint directory.

    Args:
        directory: an empty local directory.
        model: the transformers model.
        weights: whole weights where the model holds only its part.
        optimizer: the optimiser's whole state.
        rng: torch's random state of every worker, in order of rank.
        state: everything else.
    """
    if weights is None:
        save_model(model, directory / "model")
    else:
        model.save_pretrained(directory / "model", state_dict=weights)
    torch.save(optimizer, directory / "optimizer.pt")
    torch.save(rng, directory / "rng.pt")
    (directory / "state.json").write_text(json.dumps(asdict(state)))
    seal(directory / "model")
    seal(directory)


def is_finite(tensors: Iterable[Any]) -> bool:
    """Whether no number in these tensors is NaN or infinite, as far as this worker holds them."""
    for each in tensors:
        tensor = each.to_local() if hasattr(each, "to_local") else each
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            return False
    return True


def read_state(directory: Path) -> TrainState:
    """The state of a checkpoint directory.

    Raises:
        UserError: it is not a checkpoint.
    """
    file = directory / "state.json"
    names = [entry.name for entry in fields(TrainState)]
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_checkpoint(str(error), file) from None
    if not isinstance(values, dict) or set(values) != set(names):
        raise _no_checkpoint(f"must hold {', '.join(names)}", file)
    return checked(TrainState, values, file=file, remedy=_EARLIER)


def _no_checkpoint(why: str, file: Path) -> UserError:
    return UserError(f"is not a checkpoint: {why}", file=file, remedy=_EARLIER)


def read_tensors(directory: Path, name: str) -> Any:
    """`optimizer.pt` or `rng.pt`: tensors and plain values only, never code.

    Raises:
        UserError: the file is broken, or holds anything else.
    """
    try:
        return torch.load(directory / name, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle breaks in as many ways as Python has errors
        raise UserError(
            f"is not part of a checkpoint: {first_line(error)}",
            file=directory / name,
            remedy="resume from an earlier checkpoint",
        ) from None
