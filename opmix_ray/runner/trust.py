"""What an earlier part of a run left, looked at before a run goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from opmix_ray.errors import UserError
from opmix_ray.output.rows import Row
from opmix_ray.output.state import BEFORE, METRICS, RunState, load_state
from opmix_ray.record import checked
from opmix_ray.storage import Storage
from opmix_ray.train.recover import checkpoint_fault

DAMAGED = "run again with --resume: the checkpoint before it is used"


def trusted(storage: Storage, state: RunState, say: Callable[[str], None]) -> RunState:
    """The state to go on from: the given one, or the one before its checkpoint was made if that is gone or damaged.

    Args:
        storage: the run's output.
        state: where it stands.
        say: called with a line if the checkpoint is not used.

    Raises:
        UserError: there is nothing before it.
    """
    if not state.done or state.checkpoint is None:
        return state
    why = checkpoint_fault(storage, state.checkpoint)
    if why is None:
        return state
    before = load_state(storage, BEFORE) if storage.exists(BEFORE) else state
    if before.checkpoint == state.checkpoint:
        raise UserError(
            f"is a checkpoint that {why}, and there is none before it",
            file=storage.path(state.checkpoint),
            remedy="restore it, or begin again with --overwrite",
        )
    say(f"checkpoint {storage.path(state.checkpoint)} {why}; the one before it is used")
    return before


def checkpoints(storage: Storage, checkpoint: str) -> list[str]:
    """Names of the checkpoints in the directory of one."""
    names = storage.names(checkpoint.rpartition("/")[0])
    return [name for name in names if name.startswith("checkpoint_") and not name.endswith(".json")]


def final_rows(
    storage: Storage, state: RunState, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that are final; a damaged line is left out.

    Args:
        storage: the run's output.
        state: where it stands.
        say: called with a line for each one left out.
    """
    rows = []
    for number, line in enumerate(storage.lines(METRICS)[: state.rows], start=1):
        try:
            row: Any = checked(cast(Any, Row), json.loads(line), file=storage.path(METRICS))
            rows.append(row)
        except (ValueError, RecursionError):  # a UserError is a ValueError
            say(
                f"{storage.path(METRICS)}: line {number} is damaged and left out; the weights do not depend on it"
            )
    return rows
