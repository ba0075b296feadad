"""What a run may go on from: what an earlier part of it left, and what it read, known by content and not by path.

state.content = fingerprint(config, prepared)      # when the run begins
refuse(changed(state.content, fingerprint(config, prepared)))      # when it goes on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from opmix_ray import plugins
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.output.state import BEFORE, METRICS, RESULT, STATE, Row, RunState, load_state
from opmix_ray.storage import Storage, checked
from opmix_ray.train.checkpoint import checkpoint_fault

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
    if before.checkpoint == state.checkpoint and storage.exists(RESULT):
        raise UserError(
            "is damaged or gone; the run was finished, and its model and result.json can be used as they are",
            file=storage.path(STATE),
            remedy="restore it, or name another --output to run again",
        )
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


_WHOLE = 1 << 26  # bytes up to which a file of a model is read whole; of a larger one, blocks all over it
_BLOCKS, _BLOCK = 64, 1 << 18
_HELD_OUT = " (held out)"
REMEDY = "put the old files back, or begin another run with `opmix run --continue`"


def fingerprint(config: RunConfig, prepared: Prepared) -> dict[str, str]:
    """A digest by configuration key: domains, their held-out documents, evaluation sets, tokenizer, model, spaces,
    tasks, and the code of other packages that the run names.

    Args:
        config: as it was given; `base.run` still names the run that this one goes on from.
        prepared: its data.
    """
    found = {"tokenizer.path": Path(prepared.tokenizer_path.partition("?")[0]).name}
    for name, part in prepared.domains.items():
        found[f"data.domains.{name}"] = part.digest
        found[f"data.domains.{name}{_HELD_OUT}"] = part.held_out_digest
    for name in config.evaluation.sets:
        found[f"evaluation.sets.{name}"] = prepared.eval_sets[name].held_out_digest
    if config.model.path is not None and Path(config.model.path).exists():
        found["model.path"] = _files(Path(config.model.path))
    if config.base.run is not None:
        found["base.run"] = hashlib.blake2b(Storage(config.base.run).read_text(STATE).encode()).hexdigest()[
            :32
        ]
    named = {"search.space": [config.search.space]}
    for position, stage in enumerate(config.stages):
        spaces = stage.search_space if isinstance(stage.search_space, list) else [stage.search_space]
        named[f"stages.{position}.search_space"] = [space for space in spaces if space]
    for key, spaces in named.items():
        if files := [Path(space) for space in spaces if Path(space).is_file()]:
            found[key] = _digest(b"\0".join(file.read_bytes() for file in files))
    harness = config.evaluation.harness
    if harness is not None and harness.include_path is not None and Path(harness.include_path).exists():
        found["evaluation.harness.include_path"] = _files(Path(harness.include_path))
    kinds: tuple[tuple[str, plugins.Kind, str], ...] = (
        ("strategy", "strategies", config.strategy),
        ("evaluation.objective", "objectives", config.evaluation.objective),
        ("proposal.law", "laws", config.proposal.law),
    )
    for key, kind, name in kinds:
        if code := plugins.code(kind, name):
            found[key] = _digest(b"\0".join(file.name.encode() + _content(file) for file in code))
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[UserError]:
    """An error for each thing that is not what it was; a tokenizer changes all data, so it is named alone."""
    keys = [key for key in before if before[key] != now.get(key)]  # earlier versions looked at less
    if "tokenizer.path" in keys:
        keys = ["tokenizer.path"]
    errors = []
    for key in keys:
        name = key.removesuffix(_HELD_OUT)
        if name != key and name in keys:
            continue
        errors.append(UserError(_problem(key), key=name, remedy=REMEDY))
    return errors


def _problem(key: str) -> str:
    if key.endswith(_HELD_OUT):
        return "its held-out documents are not those that this run began with"
    what = {
        "tokenizer.path": "is another tokenizer",
        "model.path": "holds another model",
        "base.run": "is another run",
        "evaluation.harness.include_path": "holds other tasks",
        "strategy": "has other code",
        "evaluation.objective": "has other code",
        "proposal.law": "has other code",
    }
    return f"{what.get(key, 'holds other text')} than when this run began"


def _files(path: Path) -> str:
    """Digest of a file, or of the names and contents of a directory's files that are not hidden."""
    inside = path.iterdir() if path.is_dir() else [path]
    files = sorted(file for file in inside if file.is_file() and (file == path or file.name[0] != "."))
    parts = [(file.name if path.is_dir() else "").encode() + _content(file) for file in files]
    return _digest(b"\0".join(parts))


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(file, "rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            for number in range(_BLOCKS):
                stream.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.digest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
