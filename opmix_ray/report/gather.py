"""Everything the report shows, read from a run's output, finished or not; what is missing is noted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from opmix_ray.config import RunConfig
from opmix_ray.config.objective import Objective, bytes_per_token_of, weighted
from opmix_ray.config.section import without_gone
from opmix_ray.counts import ceilings as _ceilings  # noqa: F401  its laws can be read then
from opmix_ray.decision.choice import aimed
from opmix_ray.draw.numbers import number, numbers
from opmix_ray.errors import UserError
from opmix_ray.laws import FittedLaw
from opmix_ray.output.ledger import TRAINING, Ledger, read_sessions
from opmix_ray.output.state import CONFIG, METRICS, MIXTURE, RESULT, STATE
from opmix_ray.storage import Storage
from opmix_ray.trials.rows import TRIALS, TrialRow

T = TypeVar("T")


@dataclass
class DecisionFiles:
    """One directory below `decisions/`.

    Args:
        name: of the directory.
        decision: content of decision.json; empty while the decision is being made.
        rows: candidates scored, in order.
        checked: the proposal, scored as one more candidate.
        law: fitted, if there is one.
    """

    name: str
    decision: dict[str, Any] = field(default_factory=dict)
    rows: list[TrialRow] = field(default_factory=list)
    checked: TrialRow | None = None
    law: FittedLaw | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What decision.json holds besides the decision itself."""
        return _mapping(self.decision.get("details"))

    @property
    def objective(self) -> dict[str, float]:
        """Weight per evaluation set in this decision; empty where it is not recorded."""
        return numbers(self.details.get("objective"))

    @property
    def domains(self) -> list[str]:
        """Domains of the decision, in order."""
        found = dict.fromkeys(
            [*numbers(self.decision.get("current")), *numbers(self.decision.get("proposal"))]
        )
        for row in self.rows:
            found |= dict.fromkeys(row.ratios)
        return list(found)

    @property
    def sets(self) -> list[str]:
        """Evaluation sets of the decision, in order."""
        found: dict[str, None] = {}
        for row in self.rows:
            found |= dict.fromkeys(row.losses)
        return list(found or dict.fromkeys(numbers(self.details.get("losses_old"))))

    @property
    def title(self) -> str:
        """`Decision 0 at step 200, stage pretrain`."""
        if not self.decision:
            return f"Decision {self.name}, not finished"
        return (
            f"Decision {self.decision.get('index', self.name)} at step {self.decision.get('step', 'unknown')}"
        )


@dataclass
class RunFiles:
    """A run's output.

    Args:
        uri: where it lies.
        config: the configuration, None where it cannot be read.
        config_text: content of config.yaml.
        state, result: content of state.json and result.json; empty where missing.
        history: every mixture with the step it began at.
        train: rows of metrics.jsonl about training, one per step.
        evaluations: rows about held-out loss, one per step.
        decisions: in order.
        tokens: training tokens there are, by domain; empty where that is not written.
        sessions: when, where and by which command it was worked on.
        notes: what is missing or broken, in words.
    """

    uri: str
    config: RunConfig | None = None
    config_text: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[DecisionFiles] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.result.get("name") or (self.config.name if self.config else "run"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.result)

    @property
    def searched(self) -> bool:
        """Whether this is the output of `opmix search`: a decision without a run around it."""
        decided = any(files.decision for files in self.decisions)
        begun = self.finished or self.train or self.evaluations or self.state.get("done") != 0
        return decided and not begun

    @property
    def step(self) -> int:
        """The last step known."""
        steps = [number(self.result.get("steps")), number(self.state.get("step"))]
        steps += [number(row.get("step")) for row in [*self.train, *self.evaluations]]
        return int(max((step for step in steps if math.isfinite(step)), default=0))

    @property
    def planned_steps(self) -> int:
        """Steps of all stages; the last one known where there is no configuration."""
        return max(self.step, sum(stage.steps for stage in self.config.stages) if self.config else 0)

    @property
    def domains(self) -> list[str]:
        """Every domain, in the configuration's order."""
        found: dict[str, None] = dict.fromkeys(self.config.data.domains if self.config else [])
        for entry in self.history:
            found |= dict.fromkeys(numbers(entry.get("mixture")))
        return list(found)

    @property
    def sets(self) -> list[str]:
        """Every evaluation set, in the order of the first evaluation."""
        found: dict[str, None] = {}
        for row in self.evaluations:
            found |= dict.fromkeys(numbers(row.get("losses")))
        return list(found)

    @property
    def objective(self) -> dict[str, float]:
        """Weight per evaluation set, as configured; the same for all where that is unknown."""
        if self.config:
            return self.config.objective()
        if recorded := next((files.objective for files in self.decisions if files.objective), {}):
            return recorded
        return {name: 1 / len(self.sets) for name in self.sets}

    @property
    def has_perplexity(self) -> bool:
        """Whether the mean loss of text is minimised, so that a difference in the objective is one in perplexity."""
        if self.minimised.kind != "loss":
            return False
        text: set[str] = set()
        for row in self.evaluations:
            text |= set(numbers(row.get("perplexity")))
        if not self.evaluations and self.config:
            text = {
                name
                for name, kind in self.config.eval_sets().items()
                if getattr(kind, "metric", "loss") == "loss"
            }
        return bool(self.objective) and all(name in text for name, weight in self.objective.items() if weight)

    @property
    def unit(self) -> str:
        """Of the objective; none of losses and rates of wrong answers together."""
        if self.minimised.kind != "loss":
            return self.minimised.unit
        return "nats per token" if self.has_perplexity else ""

    @property
    def ledger(self) -> dict[str, dict[str, float]]:
        """Sums by purpose and unit; without answers and teacher where there are none."""
        entries = _mapping(self.result.get("ledger")) or _mapping(self.state.get("ledger"))
        found = {name: numbers(units) for name, units in entries.items() if isinstance(units, dict)}
        return {name: own for name, own in found.items() if name not in TRAINING[1:] or any(own.values())}

    @property
    def training_flops(self) -> float:
        """FLOPs of training, a student's answers and its teacher included; NaN where nothing was trained."""
        flops = {name: units.get("flops", 0.0) for name, units in self.ledger.items()}
        return sum(flops.get(name, 0.0) for name in TRAINING) if flops.get("main") else math.nan

    @property
    def overhead(self) -> float:
        """FLOPs of deciding over those of training; NaN where nothing was trained."""
        return Ledger(self.ledger).overhead() if self.training_flops > 0 else math.nan

    @property
    def minimised(self) -> Objective:
        """What is minimised; the mean loss where the files do not tell."""
        if self.config:
            try:
                last = self.evaluations[-1] if self.evaluations else {}
                row = {key: numbers(_mapping(last.get(key))) for key in ("losses", "bits_per_byte")}
                return self.config.objective_of(bytes_per_token_of(row))
            except UserError:
                pass
        return Objective.of(self.objective)

    def judged(self, files: DecisionFiles) -> Objective:
        """What a decision minimised: the run's objective, over the sets that counted in it."""
        aim = self.minimised
        if aim.own is not None or not files.objective:
            return aim
        sizes = (
            dict(zip(aim.sets, aim.bytes_per_token, strict=True)) if aim.bytes_per_token is not None else {}
        )
        try:
            return weighted(aim.kind, files.objective, sizes)
        except UserError:
            return Objective.of(files.objective)

    def weighted(self, row: dict[str, Any]) -> float:
        """The objective at one evaluation."""
        return self.minimised.at(numbers(row.get("losses")))


def gather(storage: Storage) -> RunFiles:
    """Read a run's output.

    Raises:
        UserError: there is no run in that directory.
    """
    if not any(storage.exists(name) for name in (CONFIG, STATE, METRICS, MIXTURE, RESULT, "decisions")):
        raise UserError(
            "holds no run",
            file=storage.uri,
            remedy="name the output directory of `opmix run` or `opmix search`",
        )
    run = RunFiles(storage.uri)
    run.config_text = _read(storage, CONFIG, run.notes, storage.read_text) or ""
    run.config = _config(run.config_text, run.notes)
    run.state = _mapping(_read(storage, STATE, run.notes, storage.read_json))
    run.result = _mapping(_read(storage, RESULT, run.notes, storage.read_json))
    mixture = _mapping(_read(storage, MIXTURE, run.notes, storage.read_json))
    history = mixture.get("history") or run.state.get("mixtures") or run.result.get("mixtures")
    counted = _mapping(mixture.get("domains"))
    run.tokens = {name: number(_mapping(entry).get("tokens")) for name, entry in counted.items()}
    run.sessions = read_sessions(storage)
    run.history = [entry for entry in _mappings(history) if numbers(entry.get("mixture"))]
    rows = _lines(storage, METRICS, run.notes)
    run.train = _by_step(row for row in rows if row.get("kind") == "train")
    run.evaluations = _by_step(row for row in rows if row.get("kind") == "evaluation")
    if not run.evaluations:
        run.evaluations = _mappings(run.result.get("evaluations"))
    run.decisions = [_decision(storage, name, run.notes) for name in storage.names("decisions")]
    for files in run.decisions:
        aim = run.judged(files)
        if files.law is not None and set(aim.sets) <= set(files.law.metric_names):
            files.law = aimed(files.law, aim)
    if run.searched:  # nothing is trained, so nothing more will come
        run.notes = [note for note in run.notes if note not in (_absent(METRICS), _absent(RESULT))]
    return run


def _decision(storage: Storage, name: str, notes: list[str]) -> DecisionFiles:
    place = f"decisions/{name}"
    found = DecisionFiles(name)
    found.decision = _mapping(_read(storage, f"{place}/decision.json", notes, storage.read_json))
    for line in _lines(storage, f"{place}/{TRIALS}", notes):
        try:
            row = TrialRow(**line)
            row = TrialRow(
                **{
                    **line,
                    "losses": numbers(row.losses),
                    "ratios": numbers(row.ratios),
                    "objective": number(row.objective),
                }
            )
        except (TypeError, AttributeError, ValueError, OverflowError):
            notes.append(f"{place}/{TRIALS} holds a line that is not a candidate")
            continue
        if row.run == "proposal":
            found.checked = row
        else:
            found.rows.append(row)
    if storage.exists(f"{place}/law.json"):
        found.law = _read(
            storage, f"{place}/law.json", notes, lambda path: FittedLaw.from_dict(storage.read_json(path))
        )
    return found


def _read(storage: Storage, name: str, notes: list[str], read: Callable[[str], T]) -> T | None:
    """A file's content, or None and a note."""
    if not storage.exists(name):
        notes.append(_absent(name))
        return None
    try:
        return read(name)
    except (UserError, ValueError, TypeError, LookupError, AttributeError) as error:
        notes.append(f"{name} cannot be read: {error}")
        return None


def _absent(name: str) -> str:
    return f"{name} is not there yet"


def _lines(storage: Storage, name: str, notes: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    broken = 0
    for line in _read(storage, name, notes, storage.lines) or []:
        try:
            row = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if broken:
        notes.append(f"{name} holds {broken} lines that are not JSON")
    return rows


def _by_step(rows: Any) -> list[dict[str, Any]]:
    """One row per step, the last one written, in order of steps."""
    latest = {number(row.get("step")): row for row in rows}
    return [latest[step] for step in sorted(step for step in latest if math.isfinite(step))]


def _config(text: str, notes: list[str]) -> RunConfig | None:
    if not text:
        return None
    try:
        return RunConfig.model_validate(without_gone(yaml.safe_load(text)))
    except (ValueError, yaml.YAMLError):
        notes.append(f"{CONFIG} is not a configuration of this version")
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
