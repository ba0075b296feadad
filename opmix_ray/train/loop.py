"""What one worker does for one segment: the steps between two decisions, under one mixture.

`train_segment` runs inside a Ray Train worker. All workers draw the same global batch and take rows
`rank::world` of it, so that the batches do not depend on how many there are.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from opmix_ray.config import EvaluationConfig, ModelConfig, TrainConfig
from opmix_ray.config.train import learning_rate
from opmix_ray.data.held_out import Held, part_of, report_sets, tokens_of
from opmix_ray.data.prepare import Prepared
from opmix_ray.data.sampler import Batch, Sampler, SamplerState
from opmix_ray.data.store import gather
from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture
from opmix_ray.model.load import load_model, set_recompute
from opmix_ray.model.loss import SetLoss, compute_context, measure
from opmix_ray.node import use_own_threads
from opmix_ray.output.lock import writing
from opmix_ray.storage import Storage, check_sealed
from opmix_ray.train.callback import CallbackRunner, TrainingCallback
from opmix_ray.train.checkpoint import (
    BEST,
    BestKeeper,
    BestRule,
    TrainState,
    finish_checkpoint,
    is_finite,
    read_state,
    read_tensors,
    write_weights,
)
from opmix_ray.train.workers import DomainLosses, Notice, Parallel, divides

RATE = "train.optimizer.learning_rate"  # key of the error of a run that diverged


@dataclass(frozen=True)
class Segment:
    """Steps `start` to `end` of a run, all under one mixture.

    Args:
        name: unique in the run; names the segment's directory.
        start: first global step.
        end: one past the last global step.
        stage: name of its stage.
        stage_start: global step at which the stage began.
        stage_steps: steps of the stage, which the schedule spans.
        mixture: share by domain; every domain of the stage is in it.
        evaluate_at: global steps after which every evaluation set is measured.
        output: URI of the run's directory.
        checkpoint: directory inside `output` to start from; none: the configured model.
        sampler: `SamplerState.to_dict()` to start from; none: the checkpoint's.
        seed: of the run.
        sequences_searched: held-out sequences per set that are kept for decisions.
        callback: what a strategy does inside the segment, if anything.
        writer: token with which checkpoints may be written; none: there is no other writer.
        best: which evaluation's weights the stage ends with; none: the last.
    """

    name: str
    start: int
    end: int
    stage: str
    stage_start: int
    stage_steps: int
    mixture: dict[str, float]
    evaluate_at: tuple[int, ...]
    output: str
    checkpoint: str | None
    seed: int
    model: ModelConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    sequences_searched: int
    prepared: Prepared
    callback: TrainingCallback | None = None
    sampler: dict[str, Any] | None = None
    writer: str | None = None
    best: BestRule | None = None

    @property
    def stage_end(self) -> int:
        """Global step at which the stage ends."""
        return self.stage_start + self.stage_steps


def train_segment(config: dict[str, Any]) -> None:
    """Train one segment; the loop that `TorchTrainer` runs on every worker.

    Args:
        config: `segment`: a reference of the `Segment`; `reporter`: a handle of `Reporter`, or None.
    """
    use_own_threads()
    segment, reporter = ray.get(config["segment"]), config["reporter"]
    if reporter is not None and ray.get(reporter.failed.remote()):
        return  # it would fail again: the driver says why
    try:
        with tempfile.TemporaryDirectory(prefix="opmix-best-", ignore_cleanup_errors=True) as aside:
            _Worker(segment, reporter, Path(aside)).run()
    except UserError as error:
        if reporter is None:
            raise
        ray.get(reporter.fail.remote(error))
        if error.key != RATE:  # all workers come to that one together, so that none waits for the others
            raise


class _Worker:
    def __init__(self, segment: Segment, reporter: Any, aside: Path) -> None:
        self.segment = segment
        self.reporter = reporter
        context = ray.train.get_context()
        self.notice = Notice()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.keeper = BestKeeper(self, aside / BEST)
        with _checkpoint(segment) as directory:
            self._begin(directory)
        self.stores = {name: segment.prepared.domains[name].train() for name in segment.mixture}
        self.sampler = Sampler(
            {name: len(store) for name, store in self.stores.items()},
            segment.train.batch_size,
            segment.seed,
            Mixture(self._mixture()),
            SamplerState.from_dict(self.state.sampler),
        )
        self.domain_losses = DomainLosses(
            list(self.stores), segment.start, segment.stage_steps, self.device, self.parallel.total
        )
        self.domain_losses.restore(self.state.domains, self.state.step, first=self.rank == 0)
        self.callback_runner = (
            CallbackRunner(self, segment.callback) if segment.callback is not None else None
        )
        self.started = time.monotonic()
        self.seconds_before = self.state.seconds
        nats, targets = self.state.partial
        # Since the last row: nats (of this worker), target tokens (of all workers), and when it was.
        self._since: list[Any] = [nats if self.rank == 0 else 0.0, targets, time.monotonic()]
        logged = [row["step"] for row in self.state.rows if row["kind"] == "train"]
        self._logged = logged[-1] if logged else segment.start

    def _begin(self, directory: Path | None) -> None:
        segment = self.segment
        source = segment.model
        self.resumed = False  # in the middle of this segment
        if directory is None:
            self.state = TrainState(segment.start, segment=segment.name)
        else:
            found = read_state(directory)
            self.resumed = found.segment == segment.name
            self.state = (
                found if self.resumed else TrainState(segment.start, found.sampler, segment=segment.name)
            )
            self.keeper.begin(found, directory)
            source = source.at(directory / "model")
        if segment.sampler is not None and not self.resumed:
            self.state.sampler = segment.sampler
        model = load_model(
            source,
            vocab_size=segment.prepared.vocab_size,
            eos_token_id=segment.prepared.eos_token_id,
            seed=segment.seed,
            seq_len=segment.prepared.seq_len,
        )
        torch.manual_seed(segment.seed * 1_000_003 + self.rank)
        model.train()
        set_recompute(model, segment.model.recompute)
        if not divides(segment.train.strategy):
            model.to(self.device)  # type: ignore[arg-type]
        own = segment.callback.module(model) if segment.callback is not None else None
        self.parallel = Parallel(model, segment.train.strategy, self.device, own)
        self.optimizer = _optimizer(model, segment.train)
        if directory is not None and (directory / "optimizer.pt").exists():
            self.parallel.load_optimizer_state(self.optimizer, read_tensors(directory, "optimizer.pt"))
            states = read_tensors(directory, "rng.pt")
            if len(states) == self.world:
                torch.set_rng_state(states[self.rank])

    def _mixture(self) -> dict[str, float]:
        """The segment's mixture, or the one that a strategy's callback has moved it to."""
        return self.state.sampler["mixture"] if self.state.live else self.segment.mixture

    def run(self) -> None:
        segment = self.segment
        self._send("start", {"segment": segment.name, "step": self.state.step, "rows": self.state.rows})
        if self.state.step == segment.end and self.state.rows:  # finished before; only the end was not seen
            ray.train.report({"step": self.state.step})
            return
        if self.state.step == segment.start and segment.start in segment.evaluate_at and not self.state.rows:
            self._evaluate()
        every = segment.train.checkpoint_every
        while self.state.step < segment.end:
            self._step()
            step = self.state.step
            if step % segment.train.log_every == 0 or step == segment.end:
                self._log()
            if step in segment.evaluate_at:
                self._evaluate()
            if step == segment.end or self.notice.pending or (every and (step - segment.start) % every == 0):
                self._save()
                if self.notice.told() and step < segment.end:
                    self.notice.leave(self.rank)

    def _step(self) -> None:
        segment, train = self.segment, self.segment.train
        if self.callback_runner is not None:
            self.callback_runner.before_step()
        batch = self.sampler.next_batch()
        ids, mask = self._rows(batch)
        own = [float(mask[:, 1:].sum()), float(self.notice.due(self.rank)), float(self.notice.told())]
        sums = torch.tensor(own, dtype=torch.float64, device=self.device)
        targets, look, told = self.parallel.total(sums).tolist()
        if look:
            self.notice.look()
        if told:
            self.notice.pending = True
        rate = learning_rate(
            self.state.step - segment.stage_start, segment.stage_steps, train.optimizer, train.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        most = -(-train.batch_size // self.world)  # rows of the worker with the most
        micro = train.micro_batch_size or most
        starts = range(0, most, micro)  # as many on every worker, since each may be an exchange
        # Workers average gradients over each other, so each one's sum is scaled by their number.
        scale = self.world / max(targets, 1.0)
        nats = torch.zeros((), device=self.device)
        for start in starts:
            part, part_mask = ids[start : start + micro], mask[start : start + micro]
            if not len(part):
                part, part_mask = torch.zeros_like(ids[:1]), torch.zeros_like(mask[:1])
            with self.parallel.accumulate(last=start == starts[-1]):
                with compute_context(segment.model.autocast, self.device):
                    part, part_mask = part.to(self.device), part_mask.to(self.device)
                    loss, _, by_sequence = self.parallel.module(part, part_mask)
                (loss * scale).backward()
            nats += loss.detach()
            if by_sequence is not None:
                rows = batch.domain_ids[self.rank :: self.world][start : start + micro]
                self.domain_losses.add(rows, by_sequence, part_mask[:, 1:].sum(dim=1))
        if train.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parallel.module.parameters(), train.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.callback_runner is not None:
            self.callback_runner.after_step()
        self.domain_losses.end_step()
        self._since[0] = self._since[0] + nats
        self._since[1] += targets
        self.state.step += 1
        self.state.tokens += len(batch) * segment.prepared.seq_len
        self.rate = rate

    def _rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """This worker's rows of the global batch: ids int64 (n, L) and mask bool (n, L).

        With more workers than rows some have none; they take one row that counts nothing, since every worker
        has to take part in the exchange of gradients.
        """
        ids, mask = gather(self.stores, batch, slice(self.rank, None, self.world))
        if not len(ids):
            shape = (1, self.segment.prepared.seq_len)
            ids, mask = np.zeros(shape, np.int64), np.zeros(shape, bool)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _log(self) -> None:
        nats, targets, since = self._since
        total = torch.as_tensor(nats, dtype=torch.float64).to(self.device).clone()
        loss = float(self.parallel.total(total)) / max(targets, 1.0)
        if not math.isfinite(loss):
            raise self._diverged(f"the training loss is {loss}")
        now = time.monotonic()
        tokens = (
            (self.state.step - self._logged) * self.segment.train.batch_size * self.segment.prepared.seq_len
        )
        self._row(
            {
                "kind": "train",
                "step": self.state.step,
                "stage": self.segment.stage,
                "loss": loss,
                "domains": self.domain_losses.take_row(),
                "learning_rate": self.rate,
                "tokens_per_second": tokens / max(now - since, 1e-9),
                "delivered": self.sampler.delivered,
            }
            | ({} if self.callback_runner is None else {"mixture": self.sampler.mixture.shares})
        )
        self._since = [0.0, 0, now]
        self._logged = self.state.step

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"{what} at step {self.state.step}",
            key=RATE,
            value=self.rate,
            remedy="lower it, or lengthen the warm-up, and run again with --resume: the last checkpoint is good",
        )

    def refuse_nan(self) -> None:
        """End the segment rather than save weights or moments that are not numbers, on all workers alike."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        mine = float(is_finite([*self.parallel.model.parameters(), *moments]))
        if self.parallel.total(torch.tensor(mine, dtype=torch.float64, device=self.device)) < self.world:
            raise self._diverged("a weight of the model is not finite")

    def _evaluate(self) -> None:
        """Measure every evaluation set; workers share the sequences unless the model itself is shared."""
        segment, began = self.segment, time.monotonic()
        self.parallel.model.eval()
        sets = report_sets(segment.prepared, segment.evaluation.sequences, segment.sequences_searched)
        alone = self.parallel.sharded or self.world == 1
        losses: dict[str, SetLoss] = {}
        tokens = 0
        for name, held in sets.items():
            own = self._measure(held if alone else part_of(held, slice(self.rank, None, self.world)))
            parts = [own] if alone else self.parallel.gather(own)
            losses[name] = SetLoss(
                np.concatenate([part.nats for part in parts]), np.concatenate([part.tokens for part in parts])
            )
            tokens += tokens_of(held)
        self.parallel.model.train()
        sizes = {n: d.bytes_per_token for n, d in segment.prepared.eval_sets.items()}
        row = {
            "kind": "evaluation",
            "step": self.state.step,
            "stage": segment.stage,
            "losses": {name: loss.mean for name, loss in losses.items()},
            "perplexity": {n: loss.perplexity for n, loss in losses.items() if isinstance(sets[n], tuple)},
            "accuracy": {n: 1 - loss.mean for n, loss in losses.items() if not isinstance(sets[n], tuple)},
            "bits_per_byte": {n: losses[n].bits_per_byte(size) for n, size in sizes.items() if size},
            "tokens": tokens,
            "seconds": time.monotonic() - began,
        }
        self._row(row)
        kept = self.keeper.compare(row)
        if kept is not None:
            self._row(kept)
        self._since[2] += time.monotonic() - began

    def _measure(self, held: Held) -> SetLoss:
        size, parallel = self.segment.evaluation.batch_size, self.parallel
        with torch.no_grad(), compute_context(self.segment.model.autocast, self.device):
            return measure(held, parallel.losses, parallel.generate, size, self.device)

    def _save(self) -> None:
        self.notice.pending = False
        self.refuse_nan()
        self.state.sampler = self.sampler.state.to_dict()
        self.state.seconds = self.seconds_before + (time.monotonic() - self.started) * self.world
        nats = torch.as_tensor(self._since[0], dtype=torch.float64).to(self.device)
        self.state.partial = [float(self.parallel.total(nats.clone())), float(self._since[1])]
        self.state.domains = self.domain_losses.to_dict()
        if self.callback_runner is not None:
            self.callback_runner.before_save()
        weights = self.parallel.model_state()
        optimizer = self.parallel.optimizer_state(self.optimizer)
        rng = self.parallel.gather(torch.get_rng_state())
        metrics = {"step": self.state.step}
        if self.rank:
            ray.train.report(metrics)
            return
        directory = Path(tempfile.mkdtemp(prefix="opmix-checkpoint-"))
        try:
            write_weights(directory, self.parallel.model, weights, optimizer)
            self.keeper.write(directory)
            finish_checkpoint(directory, rng, self.state)
            writer = self.segment.writer
            with writing(Storage(self.segment.output), writer) if writer is not None else nullcontext():
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _row(self, row: dict[str, Any]) -> None:
        self.state.rows.append(row)
        self._send("row", row)

    def _send(self, kind: str, payload: dict[str, Any]) -> None:
        if self.rank == 0 and self.reporter is not None:
            self.reporter.push.remote(kind, payload)


_AGAIN = "run again with --resume: the checkpoint before it is used, if that is whole"


@contextmanager
def _checkpoint(segment: Segment) -> Any:
    """The directory to go on from: the segment's own checkpoint, else the one it starts from, else None."""
    own = ray.train.get_checkpoint()
    if own is not None:
        with own.as_directory() as directory:
            check_sealed(directory, remedy=_AGAIN, shown=own.path)
            yield Path(directory)
    elif segment.checkpoint is not None:
        storage = Storage(segment.output)
        with storage.local(segment.checkpoint) as directory:
            check_sealed(directory, remedy=_AGAIN, shown=storage.path(segment.checkpoint))
            yield directory
    else:
        yield None


def _optimizer(model: torch.nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    settings = train.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
