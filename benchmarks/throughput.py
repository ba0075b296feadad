"""Training speed of the main loop against `transformers.Trainer`: same model, same batches, same threads, one run.

    python benchmarks/throughput.py [--steps 120] [--repeats 3] [--json] [--quick]

Both train the demo's model with AdamW in bfloat16 autocast, clipping included, on our sampler's batches.
Tokens a second are those after the first `--warm` steps, start-up and checkpoints left out. They alternate;
medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from subjects import Subject, demo, median, quiet_ray
from transformers import Trainer, TrainerCallback, TrainingArguments

from opmix_ray.config import TrainConfig
from opmix_ray.data.sampler import Sampler
from opmix_ray.data.store import gather
from opmix_ray.decision.task import load_weights
from opmix_ray.mixture import Mixture
from opmix_ray.train.loop import Segment
from opmix_ray.train.trainer import run_segment


class _Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The sequences of our sampler's batches, in its order."""

    def __init__(self, subject: Subject, mixture: Mixture, steps: int) -> None:
        stores = {name: subject.prepared.domains[name].train() for name in mixture}
        sampler = Sampler(
            {name: len(store) for name, store in stores.items()},
            subject.config.train.batch_size,
            subject.config.seed,
            mixture,
        )
        self.ids = np.concatenate([gather(stores, sampler.next_batch())[0] for _ in range(steps)])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.ids[index])
        return {"input_ids": ids, "labels": ids}


class _InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _Clock(TrainerCallback):
    def __init__(self, warm: int) -> None:
        self.warm, self.began, self.ended = warm, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        if state.global_step == self.warm:
            self.began = now
        self.ended = now


def trainer_speed(
    subject: Subject, batches: _Batches, steps: int, warm: int, threads: int
) -> tuple[float, float]:
    """Tokens a second of `transformers.Trainer`, and its last loss."""
    torch.set_num_threads(threads)
    train = subject.config.train
    model = load_weights(subject.config, subject.prepared, None).train()
    clock = _Clock(warm)
    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArguments(
            output_dir=directory, per_device_train_batch_size=train.batch_size, max_steps=steps, bf16=True,
            use_cpu=True,
            learning_rate=train.optimizer.learning_rate, weight_decay=train.optimizer.weight_decay,
            adam_beta1=train.optimizer.betas[0], adam_beta2=train.optimizer.betas[1], max_grad_norm=1.0,
            lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_steps=steps, disable_tqdm=True,
            dataloader_drop_last=True,
        )  # fmt: skip
        trainer = _InOrder(model=model, args=settings, train_dataset=batches, callbacks=[clock])
        loss = trainer.train().training_loss
    tokens = (steps - warm) * train.batch_size * subject.prepared.seq_len
    return tokens / (clock.ended - clock.began), float(loss)


def our_speed(subject: Subject, mixture: Mixture, steps: int, warm: int, threads: int) -> tuple[float, float]:
    """Tokens a second of a segment under Ray Train, by its own log, and its mean loss."""
    train: TrainConfig = subject.config.train.model_copy(
        update={
            "log_every": warm, "checkpoint_every": None, "cpus_per_worker": threads, "workers": 1,
            "schedule": subject.config.train.schedule.model_copy(update={"kind": "constant", "warmup_fraction": 0.0}),
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        segment = Segment(
            name="speed", start=0, end=steps, stage="speed", stage_start=0, stage_steps=steps,
            mixture=mixture.shares, evaluate_at=(), output=directory, checkpoint=None, seed=subject.config.seed,
            model=subject.config.model, train=train, evaluation=subject.config.evaluation,
            sequences_searched=1, prepared=subject.prepared,
        )  # fmt: skip
        rows = [row for row in run_segment(segment, lambda *_: None).state.rows if row["kind"] == "train"]
    took = sum(1 / row["tokens_per_second"] for row in rows[1:])
    return len(rows[1:]) / took, float(np.mean([row["loss"] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps, once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.warm, arguments.repeats = 6, 2, 1
    if arguments.steps % arguments.warm:
        parser.error("--steps must be a multiple of --warm")
    warnings.filterwarnings("ignore")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    threads = len(os.sched_getaffinity(0))
    subject = demo()
    mixture = Mixture.uniform(list(subject.prepared.domains))
    batches = _Batches(subject, mixture, arguments.steps)
    ours, theirs = [], []
    with quiet_ray(threads):
        for _ in range(arguments.repeats):
            ours.append(our_speed(subject, mixture, arguments.steps, arguments.warm, threads))
            theirs.append(trainer_speed(subject, batches, arguments.steps, arguments.warm, threads))
    found = {
        "threads": threads,
        "ours_tokens_per_second": median([speed for speed, _ in ours]),
        "trainer_tokens_per_second": median([speed for speed, _ in theirs]),
        "ours_over_trainer": median([a[0] / b[0] for a, b in zip(ours, theirs, strict=True)]),
        "mean_loss": {"ours": ours[0][1], "trainer": theirs[0][1]},
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"main loop             {found['ours_tokens_per_second']:10.0f} tokens/s on {threads} threads")
    print(f"transformers.Trainer  {found['trainer_tokens_per_second']:10.0f} tokens/s")
    print(f"ratio                 {found['ours_over_trainer']:10.2f}   goal 1.0")
    print(f"mean training loss    {found['mean_loss']['ours']:.3f} and {found['mean_loss']['trainer']:.3f}")  # type: ignore[index]


if __name__ == "__main__":
    main()
