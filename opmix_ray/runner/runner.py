"""A run from its first token to its last: stages, segments and decisions, with the state on disk in between.

result = run(load_config("examples/quickstart.yaml"))
result["final_mixture"], result["ledger"]["overhead"]
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opmix_ray.cluster.address import scratch
from opmix_ray.cluster.connect import check_reach, connected
from opmix_ray.cluster.demand import of_main_run, waiting
from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.prepare import Prepared, split_words
from opmix_ray.data.sampler import Sampler, SamplerState
from opmix_ray.data.tokenizer import load_saved_tokenizer
from opmix_ray.decision.make import Decide, Situation
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.errors import UserError, write_to
from opmix_ray.mixture import Mixture, share_caps
from opmix_ray.model.architecture import architecture, forward_flops, train_flops
from opmix_ray.output.ledger import Ledger, Session
from opmix_ray.output.lock import locked, raise_fence, writing
from opmix_ray.output.result import DomainCurves, Evaluation, make_result, write_mixture
from opmix_ray.output.state import BEFORE, METRICS, RESULT, TRAIN, RunState, load_state, open_output, sealed
from opmix_ray.report import write_report
from opmix_ray.runner.base import BASE, PriorTraining, Resolved, adopt, resolved, same_content, start_stage
from opmix_ray.runner.harness import run_harness
from opmix_ray.runner.plan import Step, evaluated_at, plan, resumes_at, stage_domains, total_steps
from opmix_ray.runner.trust import DAMAGED, changed, checkpoints, final_rows, fingerprint, trusted
from opmix_ray.runner.validate import check_before, prepare_checked, refuse
from opmix_ray.signals import Background
from opmix_ray.storage import Storage, check_sealed, read_record, seal
from opmix_ray.strategies.base import strategy_of
from opmix_ray.trackers import Tracking, tracking
from opmix_ray.train.checkpoint import BestRule
from opmix_ray.train.loop import RATE, Segment
from opmix_ray.train.trainer import SegmentResult, run_segment


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    file: Any = None,
    decide: Decide | None = None,
) -> dict[str, Any]:
    """Run a configuration to its end, from wherever its output stands.

    Args:
        config: what to do.
        resume: the output must hold this configuration's unfinished or finished run, if anything.
        overwrite: remove a run that is already in the output.
        progress: what a person sees; none: nothing.
        file: the configuration's file, for errors.
        decide: what happens at a decision; none: what `config.strategy` does.

    Returns:
        The content of result.json.

    Raises:
        UserError: something in the configuration, the data or the output is wrong.
    """
    strategy = strategy_of(config)
    progress = progress or Progress()
    storage = Storage(config.output_uri())
    local = [storage.uri] if storage.is_local else []
    write_to(*local, Path(os.path.expanduser(config.data.cache)), *scratch())
    with resolved(strategy.plan(config)) as this:
        config = this.config
        refuse(check_before(config, file))
        with locked(storage):
            state = open_output(
                this.written, storage, resume=resume, overwrite=overwrite, say=progress.message
            )
            over = _is_over(storage, state)
            if state.content or not over:
                prepared = prepare_checked(config, progress.preparing)
                content = fingerprint(this.written, prepared)
                if state.done:
                    refuse(changed(state.content or content, content))
                    same_content(state, prepared)
            if not over:  # and nothing is wrong: a driver that is refused sends no other one away
                writer = raise_fence(storage)
                if not storage.is_local:  # another one may have gone on meanwhile
                    state = open_output(this.written, storage, resume=False, overwrite=False)
                    over = _is_over(storage, state)
            if over:
                progress.message(f"{storage.uri} holds this run, finished; use --overwrite to run it again")
                return storage.read_json(RESULT)
            state = trusted(storage, state, progress.message)
            if state.done:
                progress.message(
                    f"resumed from step {resumes_at(config, storage, state)} of {total_steps(config)}"
                )
            else:
                adopt(this.written, storage, state)
                state.content = content
            for line in split_words(prepared):
                progress.message(line)
            with connected(config), tracking(config, storage, _done(storage, state)) as tracked:
                refuse(check_reach(config, storage, prepared))
                decide = decide or strategy.decide
                return _Runner(this, prepared, storage, state, progress, decide, tracked, writer).run()


def _is_over(storage: Storage, state: RunState) -> bool:
    return state.finished and storage.exists(RESULT)


_KEPT = 2  # checkpoints, the one in force among them


class _Runner:
    def __init__(
        self, this: Resolved, prepared: Prepared, storage: Storage, state: RunState, progress: Progress,
        decide: Decide, tracked: Tracking, writer: str,
    ) -> None:  # fmt: skip
        self.config, self.stages, self.begins_after = this.config, this.stages, this.prior
        self.prepared, self.decide, self.tracked = prepared, decide, tracked
        self.storage, self.state, self.progress, self.writer = storage, state, progress, writer
        self.ledger = Ledger(state.ledger)
        self.tokens = {name: domain.train_tokens for name, domain in prepared.domains.items()}
        self.rows = final_rows(storage, state, progress.message)
        state.rows = len(self.rows)
        self._flops: tuple[float, float] | None = None
        self._begun = ""  # segment whose workers began last
        self.session = Session(storage)

    def run(self) -> dict[str, Any]:
        steps = plan(self.config)
        for number in range(self.state.done, len(steps)):
            before = asdict(self.state)
            getattr(self, f"_{steps[number].kind}")(steps[number])
            self.state.done = number + 1
            self.state.ledger = self.ledger.to_dict()
            with writing(self.storage, self.writer):
                if self.state.checkpoint != before["checkpoint"]:
                    self.storage.write_json(BEFORE, sealed(before))
                self.state.save(self.storage)
            self.session.save()
            self.tracked.costs(self.state.step, self.state.ledger, self.ledger.overhead())
            self._drop_old_checkpoints()
        return self._finish()

    def _stage(self, step: Step) -> None:
        stage, before = self.config.stages[step.stage], PriorTraining.of(self.state)
        if stage.restart:
            before, self.state.begun, self.state.curves = self.begins_after, {}, {}
            self.state.checkpoint = BASE if self.storage.exists(BASE) else None
        start = start_stage(self.config, step.stage, before, self.prepared)
        for note in start.notes:
            self.progress.message(note)
        self.state.stage = stage.name
        start.prior.put(self.state)
        for name in start.mixture:
            self.state.begun.setdefault(name, start.prior.sampler.consumed.get(name, 0))
        self.state.old = start.old.shares if start.old is not None else {}
        self._set_mixture(start.mixture, step.start, "start of the stage")

    def _train(self, step: Step) -> None:
        config, stage = self.config, self.config.stages[step.stage]
        stage_start = sum(other.steps for other in config.stages[: step.stage])
        segment = Segment(
            name=step.name(config),
            start=step.start,
            end=step.end,
            stage=stage.name,
            stage_start=stage_start,
            stage_steps=stage.steps,
            mixture=self.state.mixture,
            evaluate_at=evaluated_at(config, step),
            output=self.storage.uri,
            checkpoint=self.state.checkpoint,
            seed=config.seed,
            model=config.model,
            train=config.train,
            evaluation=config.evaluation,
            sequences_searched=config.search.sequences,
            prepared=self.prepared,
            callback=strategy_of(config).callback(self._as_of(stage.name), self._caps(stage)),
            sampler=self.state.sampler,
            writer=self.writer,
            best=self._best_rule(stage.name),
        )
        self.progress.segment_started(stage.name, step.start, step.end, self.state.mixture)
        try:
            with waiting(of_main_run(config), self.progress.message):
                result = run_segment(segment, self._on_event)
        except UserError as error:
            if error.key == RATE:
                self.state.diverged = self.state.step
                self.state.save(self.storage)
            raise
        self._account(result)

    def _on_event(self, kind: str, payload: dict[str, Any]) -> None:
        """Keep metrics.jsonl equal to what the workers have done, whatever they had to do again."""
        if kind == "note":
            self.progress.message(payload["text"])
        elif kind == "start":
            if payload["step"] > self.state.step or payload["segment"] == self._begun:
                self.progress.message(f"training goes on from step {payload['step']}")
            self._begun = payload["segment"]
            self._write_rows(payload["rows"])
            for row in payload["rows"]:
                self._tell(row)
        else:
            self.storage.append(METRICS, json.dumps(payload) + "\n")
            self._tell(payload)

    def _tell(self, row: dict[str, Any]) -> None:
        self.progress.row(row)
        self.tracked.row(row)

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row) + "\n" for row in [*self.rows, *rows]]
        self.storage.write_text(METRICS, "".join(lines))

    def _account(self, result: SegmentResult) -> None:
        self._write_rows(result.state.rows)
        self.rows += result.state.rows
        self.state.rows = len(self.rows)
        self.state.step = result.state.step
        self.state.checkpoint = result.checkpoint
        self.state.sampler = result.state.sampler
        self._add_curves(result.state.domains["curves"])
        train, forward = self._flops_per_token()
        evaluated = [row for row in result.state.rows if row["kind"] == "evaluation"]
        seconds = sum(row["seconds"] for row in evaluated)
        self.ledger.add(
            "main",
            tokens=result.state.tokens,
            flops=result.state.tokens * train,
            seconds=result.state.seconds - seconds,
        )
        tokens = sum(row["tokens"] for row in evaluated)
        self.ledger.add("evaluation", tokens=tokens, flops=tokens * forward, seconds=seconds)
        for purpose, tokens in result.state.side.items():
            self.ledger.add(purpose, tokens=tokens, flops=tokens * forward)
        if result.state.live:
            self._set_mixture(
                Mixture(result.state.sampler["mixture"]), result.state.step, self.config.strategy
            )

    def _add_curves(self, values: dict[str, Any]) -> None:
        """Put a segment's losses by domain behind those of the segments before."""
        curves, before = DomainCurves.from_dict(values), self.state.curves
        if before:
            curves = DomainCurves.from_dict(before).then(curves)
        self.state.curves = curves.to_dict()

    def _evaluations(self) -> tuple[Evaluation, ...]:
        """Those of the weights in force, since they were begun with."""
        stages = [stage.name for stage in self.config.stages]
        fresh = [k for k, stage in enumerate(self.config.stages) if stage.restart or k == 0]
        since = stages[max(k for k in fresh if k <= stages.index(self.state.stage)) :]
        return tuple(
            Evaluation(row["step"], row["losses"])
            for row in self.rows
            if row["kind"] == "evaluation" and row["stage"] in since
        )

    def _drop_old_checkpoints(self) -> None:
        """Keep the segment that holds the weights in force, and the one before it if that holds the last but one."""
        if self.state.checkpoint is not None:
            kept = {self.state.checkpoint.split("/")[1]}
            before = load_state(self.storage, BEFORE).checkpoint if self.storage.exists(BEFORE) else None
            if before is not None and len(checkpoints(self.storage, self.state.checkpoint)) < _KEPT:
                kept.add(before.split("/")[1])
            if any(stage.restart for stage in self.config.stages):
                kept.add(BASE.split("/")[1])
            for name in self.storage.names(TRAIN):
                if name not in kept:
                    self.storage.delete(f"{TRAIN}/{name}")

    def _decide(self, step: Step) -> None:
        began = time.monotonic()
        with self._weights() as model:
            decision = self._decision(self._situation(step, model), self.progress, self.ledger)
        self._follow(decision, step, _wall(decision, began))

    def _overlap(self, step: Step) -> None:
        """Train on under the old mixture while the decision is made from the weights the step begins with."""
        began, ledger = time.monotonic(), Ledger()
        self._flops_per_token()  # now: two threads must not build models at the same time
        with self._weights() as model:
            situation, progress = self._situation(step, model), self.progress.in_background()
            background = Background(lambda: self._decision(situation, progress, ledger))
            before = self.ledger["main"]["seconds"]
            self._train(step)
            decision = background.result()
        trained = (self.ledger["main"]["seconds"] - before) / self.config.train.workers
        self.ledger.merge(ledger)
        self._follow(decision, step, max(0.0, _wall(decision, began) - trained))

    def _situation(self, step: Step, model: Path | None) -> Situation:
        config, stage = self.config, self.config.stages[step.stage]
        stage_end = sum(other.steps for other in config.stages[: step.stage + 1])
        began_with = next(each for each in self.state.mixtures if each["stage"] == stage.name)
        return Situation(
            index=step.index,
            step=step.start,
            stage=stage.name,
            space=step.space,
            current=Mixture(self.state.mixture).over(stage_domains(config, stage)),
            model=model,
            tokens_left=(stage_end - step.end) * config.train.batch_size * self.prepared.seq_len,
            tokens_used=self._used(step.end - step.start),
            old=Mixture(self.state.old) if self.state.old else None,
            first=Mixture(began_with["mixture"]).over(stage_domains(config, stage)),
            effective=step.end,
            curves=DomainCurves.from_dict(self.state.curves) if self.state.curves else None,
            evaluations=self._evaluations(),
        )

    def _decision(self, situation: Situation, progress: Progress, ledger: Ledger) -> Decision:
        config = self._as_of(situation.stage)
        return self.decide(config, self.prepared, self.storage, situation, progress, ledger)

    def _as_of(self, stage: str) -> RunConfig:
        """The configuration with the objective of a stage."""
        return next(
            config for config, one in zip(self.stages, self.config.stages, strict=True) if one.name == stage
        )

    def _best_rule(self, stage: str) -> BestRule | None:
        """Which evaluation of a stage is the best; None: the last weights are kept."""
        if self.config.train.keep == "last":
            return None
        config = self._as_of(stage)
        return BestRule(config.objective_of(self.prepared.bytes_per_token), config.objective())

    def _follow(self, decision: Decision, step: Step, idle: float) -> None:
        """Let a decision's mixture come into force at the step's end; `idle` seconds were waited for it."""
        self.ledger.add("idle", seconds=idle * self.config.train.workers)
        self.tracked.decision(decision)
        if decision.kept == "proposal":
            made = f", made for step {step.start}" if step.end > step.start else ""
            self._set_mixture(Mixture(decision.mixture), step.end, f"decision {decision.index}{made}")

    def _set_mixture(self, mixture: Mixture, step: int, why: str) -> None:
        self.state.mixture = mixture.shares
        start = {"step": step, "stage": self.state.stage, "why": why, "mixture": mixture.shares}
        self.state.mixtures.append(start)
        write_mixture(self.storage, mixture, self.state.mixtures, self.prepared)
        self.tracked.mixture(step, mixture.shares)

    def _caps(self, stage: StageConfig) -> dict[str, float]:
        """The greatest share of each domain that repetition allows in what is left of a stage."""
        tokens = {name: self.tokens[name] for name in stage_domains(self.config, stage)}
        epochs = {name: self.config.data.domains[name].max_epochs for name in tokens}
        length = stage.steps * self.config.train.batch_size * self.prepared.seq_len
        return share_caps(tokens, epochs, self._used(), length)

    def _used(self, ahead: int = 0) -> dict[str, float]:
        """Tokens drawn by domain since the weights in force were begun with, and in so many steps ahead."""
        state, mixture = SamplerState.from_dict(self.state.sampler), Mixture(self.state.mixture)
        if ahead:
            sizes = {name: self.prepared.domains[name].train_sequences for name in mixture}
            sampler = Sampler(sizes, self.config.train.batch_size, self.config.seed, mixture, state)
            sampler.skip(ahead)
            state = sampler.state
        return {name: float(count * self.prepared.seq_len) for name, count in state.consumed.items()}

    @contextmanager
    def _weights(self) -> Iterator[Path | None]:
        """The directory of the weights in force, for the time of a `with`; None: the configured model."""
        if self.state.checkpoint is None:
            yield None
            return
        with self.storage.local(f"{self.state.checkpoint}/model") as directory:
            yield directory

    def _flops_per_token(self) -> tuple[float, float]:
        """FLOPs per token of a training step and of a forward pass."""
        if self._flops is None:
            prepared = self.prepared
            model = architecture(
                self.config.model, vocab_size=prepared.vocab_size, eos_token_id=prepared.eos_token_id
            )
            length = prepared.seq_len
            self._flops = train_flops(model, 1.0, length), forward_flops(model, 1.0, length)
        return self._flops

    def _finish(self) -> dict[str, Any]:
        """Write the model, the result and the report; then mark the run as finished."""
        if self.state.checkpoint is not None:
            self._publish_model(self.state.checkpoint)
        result = make_result(
            self.config, self.state, self.rows, self.storage, self.tokens, self.prepared.seq_len
        )
        result["harness"] = run_harness(self.config, self.storage)
        self.storage.write_json(RESULT, result)
        self.session.save()
        write_report(self.storage)
        self.state.finished = True
        self.state.save(self.storage)
        return result

    def _publish_model(self, checkpoint: str) -> None:
        with (
            tempfile.TemporaryDirectory() as directory,
            self.storage.local(f"{checkpoint}/model") as source,
        ):
            check_sealed(source, remedy=DAMAGED, shown=self.storage.path(f"{checkpoint}/model"))
            for file in source.iterdir():
                (Path(directory) / file.name).write_bytes(file.read_bytes())
            load_saved_tokenizer(self.prepared.tokenizer_path).save_pretrained(directory)
            seal(directory)
            self.storage.upload(directory, "model")


def _done(storage: Storage, state: RunState) -> dict[str, Any]:
    """What earlier attempts at a run have done: rows, mixtures, decisions."""
    places = [f"decisions/{name}/decision.json" for name in storage.names("decisions")] if state.done else []
    return {
        "rows": final_rows(storage, state),
        "mixtures": state.mixtures,
        "decisions": [read_record(storage, place, Decision) for place in places if storage.exists(place)],
    }


def _wall(decision: Decision, began: float) -> float:
    """Wall seconds that a decision took; those it noted, where it was found and not made."""
    noted = decision.details.get("wall_seconds", {})
    return float(sum(noted.values())) if noted else time.monotonic() - began
