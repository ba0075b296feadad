"""Connecting to Ray: an address that answers, or a Ray of our own that is big enough."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import ray

from opmix_ray.config import RunConfig
from opmix_ray.errors import UserError


def cpus_needed(config: RunConfig) -> float:
    """The most CPUs that one part of a run holds at a time and cannot do without."""
    train = config.train.workers * config.train.cpus_per_worker
    return max(train, config.probe.cpus, config.search.cpus)


def gpus_needed(config: RunConfig) -> float:
    """The same for GPUs."""
    return max(config.train.workers * config.train.gpus_per_worker, config.probe.gpus, config.search.gpus)


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
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address and address != "local":
        _join(address, config.cluster.connect_timeout)
    else:
        cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, -int(-cpus_needed(config) // 1))
        with _quiet():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        check_resources(config)
        yield
    finally:
        ray.shutdown()


def check_resources(config: RunConfig) -> None:
    """Compare what a run asks for with what the cluster has.

    Raises:
        UserError: it has not enough CPUs or GPUs, unless it can grow.
    """
    if _autoscales():
        return
    have = ray.cluster_resources()
    for kind, needed, key in (
        ("CPU", cpus_needed(config), "cpus"),
        ("GPU", gpus_needed(config), "gpus"),
    ):
        if needed > have.get(kind, 0) + 1e-9:
            raise UserError(
                f"the run asks for {needed:g} {kind}s at a time, the cluster has {have.get(kind, 0):g}",
                key=f"train.{key}_per_worker",
                value=getattr(config.train, f"{key}_per_worker"),
                remedy=f"lower train.workers or the {key} asked for, or add machines",
            )


def _autoscales() -> bool:
    """Whether the cluster may grow: an autoscaler has written its state."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        address = ray.get_runtime_context().gcs_address
        return bool(get_cluster_status(address).stats) and bool(os.environ.get("RAY_AUTOSCALING"))
    except Exception:
        return False


def _join(address: str, timeout: float) -> None:
    refused = UserError(
        "no Ray answers at this address",
        key="cluster.address",
        value=address,
        remedy="start one with `ray start --head`, correct the address, or leave it out for a Ray of our own",
    )
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
        if not host or not port:
            raise UserError(
                "is not an address",
                key="cluster.address",
                value=address,
                remedy="use auto, host:port or ray://host:port",
            )
        try:
            socket.create_connection((host, port), timeout=timeout).close()
        except OSError:
            raise refused from None
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(int(timeout)))
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        refused.__cause__ = error
        raise refused from None


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
