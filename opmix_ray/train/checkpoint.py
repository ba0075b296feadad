"""What the main run needs to go on: weights, optimiser, random states, sampler and the rows written so far.

A checkpoint is a directory: `model/` (Hugging Face), `optimizer.pt`, `rng.pt`, `state.json`, `sizes.json`.
Nothing in it is unpickled into code when it is read.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.load import save_model
from opmix_ray.record import checked

_SIZES = "sizes.json"  # bytes of every other file, to tell a copy that was cut off


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
    (directory / _SIZES).write_text(json.dumps(_sizes(directory)))


def is_whole(directory: Path) -> bool:
    """Whether every file of a checkpoint directory is there with all its bytes; a copy may have been cut off."""
    try:
        return bool(_sizes(directory) == json.loads((directory / _SIZES).read_text()))
    except (OSError, ValueError):
        return False


def _sizes(directory: Path) -> dict[str, int]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != _SIZES]
    return {str(path.relative_to(directory)): path.stat().st_size for path in files}


def read_state(directory: Path) -> TrainState:
    """The state of a checkpoint directory.

    Raises:
        UserError: it is not a checkpoint.
    """
    file = directory / "state.json"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"is not a checkpoint: {error}", file=file, remedy="resume from an earlier run"
        ) from None
    return checked(TrainState, content, file=file, remedy="resume from an earlier run")


def read_tensors(directory: Path, name: str) -> Any:
    """`optimizer.pt` or `rng.pt`: tensors and plain values only, never code.

    Raises:
        UserError: the file is broken, or holds anything else.
    """
    try:
        return torch.load(directory / name, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"is not part of a checkpoint: {first_line(error)}",
            file=directory / name,
            remedy="resume from an earlier checkpoint",
        ) from None
