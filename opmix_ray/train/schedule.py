"""Learning rate as a function of the step in a stage; a decision inside the stage changes nothing."""

from __future__ import annotations

import math

from opmix_ray.config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of step `step` (from 0) of a stage of `steps` steps.

    Linear warm-up, then constant, cosine, or stable and linear decay (WSD: Hu et al. 2024, arXiv 2404.06395).
    """
    peak, last = optimizer.learning_rate, schedule.final_ratio
    warmup = round(schedule.warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))
    decay = round(schedule.decay_fraction * steps)
    left = steps - step
    return peak if left > decay else peak * (last + (1 - last) * left / max(1, decay))
