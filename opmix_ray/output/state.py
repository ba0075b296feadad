"""Where a run stands, on disk after every step of its plan; and rows of metrics.jsonl: what it trained and measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, NotRequired, cast

import yaml
from pydantic import ConfigDict, Field, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12

from opmix_ray.config import RunConfig, dump_config
from opmix_ray.config.section import without_gone
from opmix_ray.data.sampler import SamplerState
from opmix_ray.errors import UserError
from opmix_ray.harmless import plain
from opmix_ray.output.ledger import SESSIONS
from opmix_ray.storage import REMEDY, Storage, checked, read_records

STATE, CONFIG, METRICS, MIXTURE, RESULT = (
    "state.json",
    "config.yaml",
    "metrics.jsonl",
    "mixture.json",
    "result.json",
)
BEFORE = "state.before.json"  # the state before the checkpoint in force was made
HASH = "hash"  # of everything else in a state
LOCK = ".lock"
FENCE = ".writer"  # who may write checkpoints; see `opmix_ray.output.lock`
HARNESS = "harness.json"
TRAIN = "train"  # directory of the segments
COMPARISON = "comparison.html"
_FILES = {
    STATE,
    BEFORE,
    CONFIG,
    METRICS,
    MIXTURE,
    RESULT,
    LOCK,
    FENCE,
    HARNESS,
    SESSIONS,
    COMPARISON,
    "report.html",
    "figures",
    "tensorboard",
    "decisions",
    "train",
    "model",
    "export",
}
VERSION = 1
_SHOWN = 8  # differences that an error names
# Where things run and how they are watched may change between the parts of one run.
_MAY_CHANGE: dict[str, set[str]] = {
    "": {"output", "cluster", "watch"},
    "data": {"cache"},
    "model": {"recompute"},
    "train": {
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "resources",
        "max_failures",
        "micro_batch_size",
    },
    "probe": {"cpus", "gpus", "resources"},
    "search": {"evaluators", "cpus", "gpus", "resources"},
}
_LEAST = {"done", "step", "checkpoint", "mixture", "sampler", "rows"}  # what every state holds
# What may change besides once a run has diverged.
_AFTER_DIVERGENCE = ("train.optimizer.learning_rate", "train.optimizer.clip_norm", "train.schedule")


@with_config(ConfigDict(extra="allow"))
class Entered(TypedDict):
    """What every entry of the history of mixtures holds; there is more."""

    step: int
    mixture: dict[str, float]


@dataclass
class RunState:
    """Where a run stands.

    Args:
        done: steps of the plan that are finished.
        step: global step of training.
        stage: name of the stage.
        checkpoint: directory inside the output with the weights in force; None: the configured model.
        mixture: in force.
        mixtures: every mixture with the step it began at, its stage, and why.
        ledger: `Ledger.to_dict()`.
        rows: rows of metrics.jsonl that are final.
        sampler: `SamplerState.to_dict()`, of every domain that was ever read.
        read: digest and number of the sequences of each domain when it was read.
        content: digest of everything that the run reads, by configuration key, when it began.
        begun: sequences of each domain that had been read when this run took it up.
        old: mixture that the stage began on, in the names of its domains; empty where nothing came before.
        curves: `DomainCurves.to_dict()` since the weights in force were begun with; empty before the first step.
        diverged: step at which the loss was no number; what the error advises to change may then change.
        finished: whether result.json is written.
    """

    done: int = 0
    step: int = 0
    stage: str = ""
    checkpoint: str | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    mixtures: list[dict[str, Any]] = field(default_factory=list)
    ledger: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: int = 0
    sampler: dict[str, Any] = field(default_factory=lambda: SamplerState().to_dict())
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    old: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    diverged: int | None = None
    finished: bool = False
    version: int = VERSION

    def save(self, storage: Storage) -> None:
        """Write state.json by replace."""
        storage.write_json(STATE, sealed(asdict(self)))


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a state with a hash of them all, by which it is known again as what was written."""
    kept = plain({name: value for name, value in values.items() if name != HASH})  # as it is written
    text = json.dumps(kept, sort_keys=True)
    return {**kept, HASH: hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def load_state(storage: Storage, name: str = STATE) -> RunState:
    """Read state.json.

    Raises:
        UserError: it is missing, broken, or of another version.
    """
    values = storage.read_json(name)
    names = {entry.name for entry in fields(RunState)}
    known = isinstance(values, dict) and values.get("version") == VERSION
    if not known or set(values) - names - {HASH} or _LEAST - set(values):
        raise UserError(
            "is not the state of a run of this version",
            file=storage.path(name),
            remedy="read it with the version of opmix that wrote it, or begin the run again with --overwrite",
        )
    if HASH in values and values[HASH] != sealed(values)[HASH]:  # earlier versions wrote none
        raise UserError("is damaged: it is not what was written", file=storage.path(name), remedy=REMEDY)
    values.pop(HASH, None)
    state = checked(RunState, values, file=storage.path(name))
    checked(list[Entered], state.mixtures, file=f"{storage.path(name)}: mixtures")
    checked(SamplerState, state.sampler, file=f"{storage.path(name)}: sampler")
    return state


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration that decides the result."""
    tree = config.model_dump(mode="json")
    for section, keys in _MAY_CHANGE.items():
        part = tree[section] if section else tree
        for key in keys:
            part.pop(key, None)
    # Where files lie may change too: what they hold is compared (`runner/content.py`).
    for source in [*tree["data"]["domains"].values(), *tree["evaluation"]["sets"].values()]:
        source.pop("path")
    tree["tokenizer"].pop("path")
    tree["base"].pop("run")
    (tree["evaluation"]["harness"] or {}).pop("include_path", None)
    for holder, key in ((tree["search"], "space"), *((stage, "search_space") for stage in tree["stages"])):
        many = holder[key] if isinstance(holder[key], list) else [holder[key]]
        spaces = ["a file" if str(space).endswith((".yaml", ".yml")) else space for space in many]
        holder[key] = spaces if isinstance(holder[key], list) else spaces[0]
    if (tree["model"].get("path") or "").startswith("/"):
        tree["model"]["path"] = "a local directory"
    return tree


def _state_or_before(storage: Storage, say: Callable[[str], None]) -> RunState:
    """The state, or the one before the checkpoint in force was made where it is damaged."""
    try:
        return load_state(storage)
    except UserError as error:
        if not storage.exists(BEFORE):
            raise
        state = load_state(storage, BEFORE)
        say(f"{error.file} {error.problem}; {BEFORE} is used")
        return state


def open_output(
    config: RunConfig,
    storage: Storage,
    *,
    resume: bool,
    overwrite: bool,
    say: Callable[[str], None] = lambda _: None,
) -> RunState:
    """The state to go on from; refuses a directory that belongs to something else.

    A directory with the same configuration is resumed, with or without `resume`. Config and state are written
    before this returns. `say` is called with a line if its state is damaged and the one before is used.

    Raises:
        UserError: another configuration, files that are not a run's, or nothing to resume.
    """
    if overwrite and storage.exists():
        _clear(storage)
    names = [name for name in storage.names() if name != LOCK]
    others = [name for name in names if not _is_ours(name)]
    if {STATE, BEFORE} & set(names) and CONFIG in names:
        state = _state_or_before(storage, say)
        if state.done or set(names) - {STATE, CONFIG, FENCE}:  # else nothing was done yet that could be lost
            _compare(config, storage, resume, state)
        storage.write_text(CONFIG, dump_config(config))
        return state
    if STATE in names:
        raise UserError(
            "lacks its config.yaml",
            file=storage.uri,
            key="output",
            remedy="use --overwrite or another --output",
        )
    if resume:
        raise UserError(
            "holds no run to resume",
            file=storage.uri,
            key="--resume",
            remedy="leave --resume out to begin one, or name the run's --output",
        )
    if others or set(names) - {CONFIG}:
        raise UserError(
            f"holds other files, such as {(others or names)[0]}",
            file=storage.uri,
            key="output",
            remedy="name an empty directory",
        )
    storage.write_text(CONFIG, dump_config(config))
    state = RunState()
    state.save(storage)
    return state


def _is_ours(name: str) -> bool:
    """Whether a run writes a file or directory of this name into its output."""
    return (
        name in _FILES or name.removesuffix(".part") in _FILES or (name[0] == "." and name.endswith(".part"))
    )


def _clear(storage: Storage) -> None:
    """Remove a run's files, and only a run's; a directory with anything else in it is left as it is."""
    names = [name for name in storage.names() if name != LOCK]
    others = [name for name in names if not _is_ours(name)]
    if names and not others and not {STATE, BEFORE} & set(names):
        others = names if set(names) - {CONFIG} or not _is_config(storage) else []
    if others:
        raise UserError(
            f"holds files that are not a run's, such as {others[0]}; nothing was removed",
            file=storage.uri,
            key="--overwrite",
            remedy="move them away, or name another --output",
        )
    # state.json last: a directory without it would be refused
    for name in sorted(names, key=lambda name: (name == CONFIG, name == STATE)):
        storage.delete(name)


def _is_config(storage: Storage) -> bool:
    try:
        read_config(storage)
    except UserError:
        return False
    return True


def read_config(storage: Storage) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
        UserError: config.yaml is missing or broken.
    """
    try:
        return RunConfig.model_validate(without_gone(yaml.safe_load(storage.read_text(CONFIG))))
    except (yaml.YAMLError, ValidationError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        if first is None or not first["loc"]:
            raise UserError(
                "is not a run's configuration", file=storage.path(CONFIG),
                remedy="restore the file, or begin the run again with --overwrite",
            ) from None  # fmt: skip
        raise UserError(
            f"is not a run's configuration of this version ({first['msg'][:1].lower()}{first['msg'][1:]})",
            file=storage.path(CONFIG), key=".".join(map(str, first["loc"])), value=first["input"],
            remedy="read it with the version of opmix that wrote it, or put the key right",
        ) from None  # fmt: skip


def _compare(config: RunConfig, storage: Storage, resume: bool, state: RunState) -> None:
    before = read_config(storage)
    changed = sorted(_differences(identity(before), identity(config)))
    if state.diverged is not None:
        changed = [each for each in changed if not each[0].startswith(_AFTER_DIVERGENCE)]
    if not changed:
        return
    shown = "; ".join(f"{key}: {old} there, {new} here" for key, old, new in changed[:_SHOWN])
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    remedy = (
        "put the old values back: a run cannot change its mind half-way"
        if resume
        else "choose another --output, use --overwrite, or put the old values back to resume"
    )
    raise UserError(
        f"holds a run of another configuration ({shown}{more})", file=storage.uri, key="output", remedy=remedy
    )


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in dict.fromkeys([*old, *new]):
            found += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    if old == new:
        return []
    return [(key, _short(old), _short(new))]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


@with_config(ConfigDict(extra="allow"))
class TrainRow(TypedDict):
    """What every row about training holds; there is more."""

    kind: Literal["train"]
    step: int
    loss: float
    tokens_per_second: float
    learning_rate: NotRequired[float]
    delivered: NotRequired[dict[str, int]]


@with_config(ConfigDict(extra="allow"))
class EvaluationRow(TypedDict):
    """What every row about an evaluation holds; there is more."""

    kind: Literal["evaluation"]
    step: int
    losses: dict[str, float]
    kept: NotRequired[int]  # step whose weights a stage ends with; the row is about these


Row = Annotated[TrainRow | EvaluationRow, Field(discriminator="kind")]


def read_rows(storage: Storage) -> list[dict[str, Any]]:
    """Every row of metrics.jsonl.

    Raises:
        UserError: a line is not JSON, or not such a row.
    """
    rows: list[dict[str, Any]] = read_records(storage, METRICS, cast(Any, Row))
    return rows
