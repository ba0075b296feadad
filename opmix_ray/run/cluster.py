"""Connecting to Ray: an address that answers, or a Ray of our own that is big enough."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError, UserErrors, user_errors
from opmix_ray.run.address import check_address

_QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextlib.contextmanager
def connected(config: RunConfig) -> Iterator[None]:
    """A connection to Ray for the time of a `with`; one that is already there is used and left open.

    Raises:
        UserError: the address does not answer in time, or the cluster cannot meet the requests.
    """
    if ray.is_initialized():
        check_resources(config)
        yield
        return
    address = address_of(config)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is not None:
        _join(address, config.cluster.connect_timeout)
    else:
        with _quiet():
            ray.init(address="local", num_cpus=own_cpus(config), include_dashboard=False, **_QUIET)
    try:
        check_resources(config)
        yield
    finally:
        ray.shutdown()


def address_of(config: RunConfig) -> str | None:
    """The address of the cluster that is to be used; None: a Ray of our own."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def own_cpus(config: RunConfig) -> int:
    """CPUs of a Ray of our own: as configured, else all there are, and enough for what is asked."""
    return config.cluster.num_cpus or max(os.cpu_count() or 1, math.ceil(_needed(config, "cpus")))


def check_cluster(config: RunConfig) -> list[UserError]:
    """Whether the cluster answers and has what the run asks for; no Ray of our own is started for that."""
    address = address_of(config)
    if address is None and not ray.is_initialized():
        have = {"CPU": float(own_cpus(config)), "GPU": float(torch.cuda.device_count())}
        return missing_resources(config, have, [have])
    try:
        if address is not None:
            check_address(address, config.cluster.connect_timeout)
        with connected(config):
            return []
    except UserError as error:
        return user_errors(error)


def check_resources(config: RunConfig) -> None:
    """Compare what a run asks for with what the connected cluster has, or may grow to.

    Raises:
        UserErrors: it has not enough CPUs or GPUs, all together or on any one machine.
    """
    have = _grown(ray.cluster_resources())
    machines = [_grown(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    errors = missing_resources(config, have, machines)
    if errors:
        raise UserErrors(errors)


def missing_resources(
    config: RunConfig, have: Mapping[str, float], machines: Sequence[Mapping[str, float]]
) -> list[UserError]:
    """An error for each kind of resource that the cluster has too little of.

    Args:
        config: the run.
        have: CPUs and GPUs of the whole cluster.
        machines: the same, of every machine.
    """
    errors = []
    for kind, key in (("CPU", "cpus"), ("GPU", "gpus")):
        there = have.get(kind, 0.0)
        largest = max((machine.get(kind, 0.0) for machine in machines), default=0.0)
        asked = {
            f"train.{key}_per_worker": getattr(config.train, f"{key}_per_worker"),
            f"probe.{key}": getattr(config.probe, key),
            f"search.{key}": getattr(config.search, key),
        }
        for name, each in asked.items():
            workers = config.train.workers if name.startswith("train.") else 1
            total = each * workers
            if total > there + 1e-9:
                of_workers = f" for {workers} workers" if workers > 1 else ""
                problem = f"asks for {total:g} {kind}s{of_workers}, the cluster has {there:g}"
            elif each > largest + 1e-9:
                problem = f"asks for {each:g} {kind}s on one machine, the largest has {largest:g}"
            else:
                continue
            remedy = f"lower it{' or train.workers' if workers > 1 else ''}, or add machines"
            if kind == "CPU" and config.cluster.num_cpus is not None and address_of(config) is None:
                remedy += f", or raise cluster.num_cpus ({config.cluster.num_cpus})"
            errors.append(UserError(problem, key=name, value=each, remedy=remedy))
    return errors


def _needed(config: RunConfig, key: str) -> float:
    """The most CPUs or GPUs that one part of a run holds at a time and cannot do without."""
    train = config.train.workers * getattr(config.train, f"{key}_per_worker")
    return float(max(train, getattr(config.probe, key), getattr(config.search, key)))


def _grown(resources: Mapping[str, float]) -> dict[str, float]:
    """What there is, or what the autoscaler may bring it to."""
    try:
        from ray._private.state import state

        limits = state.get_max_resources_from_cluster_config() or {}
    except Exception:  # not public: where it is gone, the cluster counts as it is
        limits = {}
    return {name: max(resources.get(name, 0.0), limits.get(name, 0.0)) for name in {*resources, *limits}}


def _join(address: str, timeout: float) -> None:
    check_address(address, timeout)
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(math.ceil(timeout)))
    try:
        with _quiet():
            ray.init(address=address, **_QUIET)
    except Exception as error:  # Ray has no common class for what can go wrong here
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"Ray cannot be joined: {lines[0]}",
            key="cluster.address",
            value=address,
            remedy="start a cluster with `ray start --head`, correct the address, or leave it out",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray's own words on connecting are not for the user of a run."""
    logger = logging.getLogger("ray._private.worker")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
