"""A run from its first token to its last: stages, segments and decisions, with the state on disk in between.

result = run(load_config("examples/quickstart.yaml"))
result["final_mixture"], result["ledger"]["overhead"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opmix_ray.config import RunConfig, StageConfig
from opmix_ray.data.plan import share_caps
from opmix_ray.data.prepare import Prepared, prepare
from opmix_ray.data.tokenizer import load_saved_tokenizer
from opmix_ray.errors import UserErrors
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import architecture
from opmix_ray.model.flops import forward_flops, train_flops
from opmix_ray.report import write_report
from opmix_ray.run.cluster import connected
from opmix_ray.run.decision import Decide, Situation
from opmix_ray.run.ledger import Ledger
from opmix_ray.run.lock import locked
from opmix_ray.run.plan import Step, plan, stage_domains, start_mixture
from opmix_ray.run.progress import Progress
from opmix_ray.run.result import make_result
from opmix_ray.run.state import METRICS, MIXTURE, RESULT, RunState, open_output
from opmix_ray.run.strategies.registry import decider, live
from opmix_ray.run.strategies.rules import planned
from opmix_ray.run.validate import check_before, check_prepared
from opmix_ray.storage import Storage
from opmix_ray.train.loop import Segment
from opmix_ray.train.trainer import TRAIN, SegmentResult, run_segment


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
    config = planned(config)
    errors = check_before(config, file)
    if errors:
        raise UserErrors(errors)
    progress = progress or Progress()
    storage = Storage(config.output_uri())
    with locked(storage):
        state = open_output(config, storage, resume=resume, overwrite=overwrite)
        if state.finished and storage.exists(RESULT):
            progress.message(f"{storage.uri} holds this run, finished; use --overwrite to run it again")
            return storage.read_json(RESULT)
        if state.done:
            progress.message(f"resuming at step {state.step}")
        prepared = prepare(config, on_progress=progress.preparing)
        errors = check_prepared(config, prepared)
        if errors:
            raise UserErrors(errors)
        with connected(config):
            return _Runner(config, prepared, storage, state, progress, decide or decider(config)).run()


class _Runner:
    def __init__(
        self, config: RunConfig, prepared: Prepared, storage: Storage, state: RunState, progress: Progress,
        decide: Decide,
    ) -> None:  # fmt: skip
        self.config, self.prepared, self.decide = config, prepared, decide
        self.storage, self.state, self.progress = storage, state, progress
        self.ledger = Ledger(state.ledger)
        self.tokens = {name: domain.train_tokens for name, domain in prepared.domains.items()}
        self.rows = [json.loads(line) for line in storage.lines(METRICS)][: state.rows]
        self._flops: tuple[float, float] | None = None

    def run(self) -> dict[str, Any]:
        steps = plan(self.config)
        for number in range(self.state.done, len(steps)):
            getattr(self, f"_{steps[number].kind}")(steps[number])
            self.state.done = number + 1
            self.state.ledger = self.ledger.to_dict()
            self.state.save(self.storage)
            self._drop_old_checkpoints()
        return self._finish()

    def _stage(self, step: Step) -> None:
        stage = self.config.stages[step.stage]
        if stage.restart:
            self.state.checkpoint = None
        previous = Mixture(self.state.mixture) if self.state.mixture else None
        mixture, moved = start_mixture(
            self.config, stage, previous, self.tokens, self._used(), self.prepared.seq_len
        )
        for name, change in moved.items():
            self.progress.message(f"{name}: share changed by {change:+.4f} to keep its max_epochs")
        self.state.stage = stage.name
        self._set_mixture(mixture, step.start, "start of the stage")

    def _train(self, step: Step) -> None:
        config, stage = self.config, self.config.stages[step.stage]
        every = config.train.eval_every
        evaluate = {step.end} | ({0} if step.start == 0 else set())
        if every:
            evaluate |= {s for s in range(step.start + 1, step.end) if s % every == 0}
        stage_start = sum(other.steps for other in config.stages[: step.stage])
        segment = Segment(
            name=step.name(config),
            start=step.start,
            end=step.end,
            stage=stage.name,
            stage_start=stage_start,
            stage_steps=stage.steps,
            mixture=self.state.mixture,
            evaluate_at=tuple(sorted(evaluate)),
            output=self.storage.uri,
            checkpoint=self.state.checkpoint,
            seed=config.seed,
            model=config.model,
            train=config.train,
            evaluation=config.evaluation,
            sequences_searched=config.search.sequences,
            prepared=self.prepared,
            live=live(config, self._caps(stage)),
        )
        self.progress.segment_started(stage.name, step.start, step.end, self.state.mixture)
        result = run_segment(segment, self._on_event)
        self._account(result)

    def _on_event(self, kind: str, payload: dict[str, Any]) -> None:
        """Keep metrics.jsonl equal to what the workers have done, whatever they had to do again."""
        if kind == "start":
            self._write_rows(payload["rows"])
            for row in payload["rows"]:
                self.progress.row(row)
        else:
            self.storage.append(METRICS, json.dumps(payload) + "\n")
            self.progress.row(payload)

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row) + "\n" for row in [*self.rows, *rows]]
        self.storage.write_text(METRICS, "".join(lines))

    def _account(self, result: SegmentResult) -> None:
        self._write_rows(result.state.rows)
        self.rows += result.state.rows
        self.state.rows = len(self.rows)
        self.state.step = result.state.step
        self.state.checkpoint = result.checkpoint
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
            self._set_mixture(Mixture(result.state.sampler["mixture"]), result.state.step, self.config.strategy)

    def _drop_old_checkpoints(self) -> None:
        """Keep the segment that holds the weights in force; what came before is not needed any more."""
        if self.state.checkpoint is not None:
            kept = self.state.checkpoint.split("/")[1]
            for name in self.storage.names(TRAIN):
                if name != kept:
                    self.storage.delete(f"{TRAIN}/{name}")

    def _decide(self, step: Step) -> None:
        config, stage = self.config, self.config.stages[step.stage]
        stage_end = sum(other.steps for other in config.stages[: step.stage + 1])
        with self._weights() as model:
            situation = Situation(
                index=step.index,
                step=step.start,
                stage=stage.name,
                space=stage.search_space or config.search.space,
                current=Mixture(self.state.mixture).over(stage_domains(config, stage)),
                model=model,
                tokens_left=(stage_end - step.start) * config.train.batch_size * self.prepared.seq_len,
                tokens_used=self._used(),
            )
            decision = self.decide(config, self.prepared, self.storage, situation, self.progress, self.ledger)
        if decision.kept == "proposal":
            self._set_mixture(Mixture(decision.mixture), step.start, f"decision {decision.index}")

    def _set_mixture(self, mixture: Mixture, step: int, why: str) -> None:
        self.state.mixture = mixture.shares
        entry = {"step": step, "stage": self.state.stage, "why": why, "mixture": mixture.shares}
        self.state.mixtures.append(entry)
        self.storage.write_json(MIXTURE, {"mixture": mixture.shares, "history": self.state.mixtures})

    def _caps(self, stage: StageConfig) -> dict[str, float]:
        """The greatest share of each domain that repetition allows in what is left of a stage."""
        tokens = {name: self.tokens[name] for name in stage_domains(self.config, stage)}
        epochs = {name: self.config.data.domains[name].max_epochs for name in tokens}
        length = stage.steps * self.config.train.batch_size * self.prepared.seq_len
        return share_caps(tokens, epochs, self._used(), length)

    def _used(self) -> dict[str, float]:
        """Tokens drawn so far by domain, since the weights in force were begun with."""
        delivered: dict[str, int] = next(
            (row["delivered"] for row in reversed(self.rows) if row["kind"] == "train" and self.state.checkpoint), {}
        )
        return {name: float(count * self.prepared.seq_len) for name, count in delivered.items()}

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
        self.storage.write_json(RESULT, result)
        write_report(self.storage)
        self.state.finished = True
        self.state.save(self.storage)
        return result

    def _publish_model(self, checkpoint: str) -> None:
        with (
            tempfile.TemporaryDirectory() as directory,
            self.storage.local(f"{checkpoint}/model") as source,
        ):
            for file in source.iterdir():
                (Path(directory) / file.name).write_bytes(file.read_bytes())
            load_saved_tokenizer(self.prepared.tokenizer_path).save_pretrained(directory)
            self.storage.upload(directory, "model")
