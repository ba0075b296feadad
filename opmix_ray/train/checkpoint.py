"""What the main run needs to go on: weights, optimiser, random states, sampler and the rows written so far.

A checkpoint is a directory: `model/` (Hugging Face), `optimizer.pt`, `rng.pt`, `state.json`, and
`checksums.json` of all these files, without which it does not count. Nothing in it is unpickled into code. With
`train.keep: best` there is also `best/`: `model/` and `optimizer.pt` of the stage's best evaluation so far. At a
stage's end these are in the place of the last ones.

Ray Train keeps a list of its checkpoints in a file that it writes in place, and goes on from the last one. Where that
file is half there, or that checkpoint is not what was written, the newest checkpoint that is whole takes its place.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from opmix_ray.config.objective import Objective
from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError, first_line
from opmix_ray.model.load import save_model
from opmix_ray.storage import Storage, checked, fault, seal

_EARLIER = "resume from an earlier run"
BEST = "best"  # directory inside a checkpoint


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
        live: what a strategy's callback remembers.
        side: tokens passed forward beside training since the segment began, by purpose in the ledger.
        best: `row` and `score` of the stage's best evaluation so far; empty where the last weights are kept.
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
    best: dict[str, Any] = field(default_factory=dict)


_LATER = {"best"}  # what checkpoints of earlier versions lack


def write_weights(
    directory: Path, model: Any, weights: dict[str, torch.Tensor] | None, optimizer: dict[str, Any]
) -> None:
    """Write `model/` and `optimizer.pt` into a local directory.

    Args:
        directory: that neither is in.
        model: the transformers model.
        weights: whole weights where the model holds only its part.
        optimizer: the optimiser's whole state.
    """
    if weights is None:
        save_model(model, directory / "model")
    else:
        model.save_pretrained(directory / "model", state_dict=weights)
    torch.save(optimizer, directory / "optimizer.pt")
    seal(directory / "model")


def finish_checkpoint(directory: Path, rng: list[Any], state: TrainState) -> None:
    """Make a checkpoint of a directory that holds weights.

    Args:
        directory: see `write_weights`.
        rng: torch's random state of every worker, in order of rank.
        state: everything else.
    """
    torch.save(rng, directory / "rng.pt")
    (directory / "state.json").write_text(json.dumps(asdict(state)))
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
    if not isinstance(values, dict) or set(values) | _LATER != set(names):
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


@dataclass(frozen=True)
class BestRule:
    """How evaluations are compared: by accuracy where questions count, then by the objective.

    Args:
        objective: of the stage.
        weights: of every evaluation set in it.
    """

    objective: Objective
    weights: Mapping[str, float]

    def score(self, row: Mapping[str, Any]) -> list[float]:
        """Greater is better, position by position; what is no number is worst.

        Args:
            row: about an evaluation, as in metrics.jsonl.
        """
        asked = {name: self.weights.get(name, 0.0) for name in row["accuracy"]}
        total = sum(asked.values())
        right = (
            sum(weight * row["accuracy"][name] for name, weight in asked.items()) / total if total else 0.0
        )
        return [_number(right), _number(-self.objective.at(row["losses"]))]


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


class BestKeeper:
    """What a worker does beside training so that its stage ends with its best weights; nothing where the last are kept.

    What it needs after a crash is in the checkpoint: `TrainState.best`, and the directory `best/`.

    Args:
        worker: of `train.loop`.
        aside: where the best weights lie until a checkpoint is written.
    """

    def __init__(self, worker: Any, aside: Path) -> None:
        self.worker = worker
        self._aside = aside

    def begin(self, found: TrainState, directory: Path) -> None:
        """Go on with the best of the stage so far; the checkpoint is the stage's own or the one before it."""
        worker = self.worker
        same = found.best.get("row", {}).get("stage") == worker.segment.stage
        worker.state.best = found.best if same else {}
        if worker.state.best and worker.rank == 0 and (directory / BEST).exists():
            shutil.copytree(directory / BEST, self._aside)

    def compare(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Put the weights aside if no evaluation of the stage was better.

        Args:
            row: the evaluation, as in metrics.jsonl.

        Returns:
            At the stage's end a row about the weights that are kept.
        """
        worker = self.worker
        state, segment, parallel = worker.state, worker.segment, worker.parallel
        if segment.best is None or state.step == segment.stage_start:
            return None
        score = parallel.gather(segment.best.score(row))[0]  # one worker's, lest rounding parts them
        if not state.best or score > state.best["score"]:
            worker.refuse_nan()
            state.best = {"score": score, "row": row}
            weights, optimizer = parallel.model_state(), parallel.optimizer_state(worker.optimizer)
            if worker.rank == 0:
                shutil.rmtree(self._aside, ignore_errors=True)
                self._aside.mkdir()
                write_weights(self._aside, parallel.model, weights, optimizer)
        if state.step < segment.stage_end:
            return None
        best = state.best["row"]
        return {**best, "step": state.step, "kept": best["step"], "tokens": 0, "seconds": 0.0}

    def write(self, directory: Path) -> None:
        """Put the best weights beside those of a checkpoint; at the stage's end into their place."""
        worker = self.worker
        if not worker.state.best:
            return
        last = worker.state.step == worker.segment.stage_end
        shutil.copytree(self._aside, directory if last else directory / BEST, dirs_exist_ok=True)


NOTES = "checkpoint_manager_snapshot.json"  # Ray Train's
_LISTED = re.compile(r'"(checkpoint_\d[^"/]*)"')


def recover(storage: Storage, directory: str, say: Callable[[str], None] = lambda _: None) -> str | None:
    """Make a segment's directory fit to go on in; to be called while no worker runs.

    Checkpoints that were never finished are removed. If Ray's notes or the last checkpoint are damaged, the newest
    whole checkpoint is put beside the directory, which is then cleared.

    Args:
        storage: the run's output.
        directory: of the segment, inside the output.
        say: called with a line for each checkpoint that is damaged.

    Returns:
        The checkpoint inside the output that was saved, now or before; None if none was.
    """
    saved = f"{directory}.saved"
    notes = _notes(storage, f"{directory}/{NOTES}")
    there = [name for name in storage.names(directory) if _LISTED.fullmatch(f'"{name}"')]
    if notes is not None:
        for name in there:
            if name not in notes:
                storage.delete(f"{directory}/{name}")
        there = [name for name in there if name in notes]
    listed = sorted({*_LISTED.findall(notes or ""), *there})
    damaged = False
    for name in reversed(listed):
        why = checkpoint_fault(storage, f"{directory}/{name}")
        if why is None:
            if notes is None or damaged:
                _put_aside(storage, f"{directory}/{name}", saved)
            break
        if notes is not None or why not in ("is gone", "has no checksums.json"):  # else it was never finished
            say(f"checkpoint {storage.path(f'{directory}/{name}')} {why}; the one before it is used")
        damaged = True
    if (notes is None or damaged) and storage.exists(directory):
        storage.delete(directory)
    if storage.exists(saved):
        why = checkpoint_fault(storage, saved)
        if why is None:
            return saved
        say(f"checkpoint {storage.path(saved)} {why}; the one before it is used")
        storage.delete(saved)
    return None


def checkpoint_fault(storage: Storage, place: str) -> str | None:
    """What is wrong with a checkpoint inside a run's output, in words; None: it is what was written."""
    if not storage.exists(place):
        return "is gone"
    try:
        with storage.local(place) as directory:
            return fault(directory)
    except UserError as error:
        return error.problem


def _put_aside(storage: Storage, place: str, saved: str) -> None:
    storage.delete(saved)
    with storage.local(place) as directory:
        if storage.is_local:
            shutil.move(directory, Path(storage.path(saved)))
        else:
            storage.upload(directory, saved)


def _notes(storage: Storage, file: str) -> str | None:
    """The text of Ray's notes; None if they are broken, or if there are none."""
    try:
        text = storage.read_text(file)
        json.loads(text)
    except ValueError:  # a UserError is one
        return None
    return text
