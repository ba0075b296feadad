"""Trainings that run beside each other as Ray tasks, and end in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from opmix_ray.config import ProbeConfig
from opmix_ray.errors import UserError
from opmix_ray.node import use_own_threads


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        name: of what is trained.
        arguments: of the function.
        asks: CPUs, GPUs and other resources.
        retries: how often it is tried again when its machine goes away.
    """

    name: str
    arguments: Sequence[Any]
    asks: ProbeConfig
    retries: int


@dataclass(frozen=True)
class Failed:
    """A training that failed for good: it raised an error, or its machines went away more often than it is retried."""

    cause: Exception


def side_by_side(
    function: Callable[..., Any], jobs: Iterable[Job], what: str, on_start: Callable[[str], None] | None
) -> Iterator[tuple[str, Any]]:
    """Names with what the function returned for them, each as soon as it is there, or with `Failed`.

    Args:
        function: run in a task for every job.
        jobs: all of them; submitted at once.
        what: kind of the jobs, for the names that Ray shows.
        on_start: called with the name of each job when it is submitted.

    Raises:
        UserError: a job failed because of its input.
    """
    waiting = {}
    for job in jobs:
        remote = ray.remote(_alone).options(
            num_cpus=job.asks.cpus,
            num_gpus=job.asks.gpus,
            resources=dict(job.asks.resources),
            max_retries=job.retries,
            name=f"{what}:{job.name}",
        )
        waiting[remote.remote(function, *job.arguments)] = job.name
        if on_start is not None:
            on_start(job.name)
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(done[0])
        try:
            yield name, ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, UserError):
                raise cause from None
            yield name, Failed(cause)
        except ray.exceptions.RayError as error:
            yield name, Failed(error)


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    use_own_threads()
    return function(*arguments)
