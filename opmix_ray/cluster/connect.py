"""Connecting to Ray: an address that answers, or a Ray of our own that is big enough; and what its machines can reach.

A directory of one machine as `output` is found out here, not when a worker's checkpoint is looked for in vain.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch

from opmix_ray.cluster import nursery
from opmix_ray.cluster.address import address_of, check_address, pulse, ray_place
from opmix_ray.cluster.demand import (
    ROUNDING,
    Demand,
    Resources,
    demands,
    machine_types,
    machines_now,
    words,
)
from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError, UserErrors, first_line, user_errors
from opmix_ray.node import WATCHER, on
from opmix_ray.output.state import STATE
from opmix_ray.paths import is_uri
from opmix_ray.storage import Storage

_TRIES = 3  # of starting a Ray of our own
_ALSO_ON_CPUS = {"probe": "probes", "search": "evaluators"}
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
    # Nobody takes a Ray of our own away and leaves the run: one process less for Train to start with every segment.
    unwatched = address is None and WATCHER not in os.environ
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with contextlib.ExitStack() as last:
        if unwatched:
            os.environ[WATCHER] = "0"
            last.callback(os.environ.pop, WATCHER, None)
        workers = last.enter_context(copied_workers()) if nursery.is_wanted(config) else {}
        last.callback(ray.shutdown)
        if address is None:
            _begin(config, workers)
        else:
            _join(address, config.cluster.connect_timeout)
        check_resources(config)
        with pulse(ray.get_runtime_context().gcs_address, _raylet(), returns=address is not None):
            yield


def _raylet() -> str | None:
    """The address of Ray's process on this machine."""
    own = ray.get_runtime_context().get_node_id()
    places = [
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        for node in ray.nodes()
        if node["NodeID"] == own
    ]
    return places[0] if places else None


def _begin(config: RunConfig, workers: dict[str, Any]) -> None:
    place = ray_place()
    with _quiet():
        start_ray(num_cpus=own_cpus(config), resources=own_resources(config),
                  _temp_dir=None if place is None else str(place), **workers, **_QUIET)  # fmt: skip


def start_ray(**options: Any) -> None:
    """`ray.init` of a Ray of our own, tried again where its node is not there in the half minute that Ray gives it.

    Raises:
        UserError: the machine is too busy for that.
    """
    for left in reversed(range(_TRIES)):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # of no class of its own
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if left == 0:
                raise UserError(
                    f"Ray did not start in {_TRIES} tries of half a minute",
                    remedy="run again when this machine is less busy, or give --address of a Ray that runs",
                ) from None


@contextlib.contextmanager
def copied_workers() -> Iterator[dict[str, Any]]:
    """Options of `ray.init` with which workers are copies (see `nursery`), while a `with` lasts.

    None where that cannot be.
    """
    begun = nursery.begin()
    if begun is None:
        yield {}
        return
    try:
        # What Ray starts at once is of no runtime environment, and would never be used.
        at_once = {"prestart_worker_first_driver": False}
        yield {
            "runtime_env": {"py_executable": shlex.join(nursery.asking(begun.address))},
            "_system_config": at_once,
        }
    finally:
        begun.end()


def own_cpus(config: RunConfig) -> int:
    """CPUs of a Ray of our own: as configured, else all there are, and enough for what is asked."""
    asked = {demand.section: demand.count * demand.each["CPU"] for demand in demands(config)}
    needed = max(asked.values())
    if any(stage.overlap for stage in config.stages):  # a decision goes on beside training
        needed = asked["train"] + max(cpus for section, cpus in asked.items() if section != "train")
    return config.cluster.num_cpus or max(os.cpu_count() or 1, math.ceil(needed))


def own_resources(config: RunConfig) -> dict[str, float]:
    """Other resources of a Ray of our own: whatever is asked for, since names of machine types mean nothing here."""
    found: dict[str, float] = {}
    for demand in demands(config):
        for kind in demand.each.keys() - {"CPU", "GPU"}:
            found[kind] = max(found.get(kind, 0.0), math.ceil(demand.count * demand.each[kind]))
    return found


def check_cluster(config: RunConfig) -> list[UserError]:
    """Whether the cluster answers and has what the run asks for; no Ray of our own is started for that."""
    address = address_of(config)
    if not joins_ray(config):
        have = {
            "CPU": float(own_cpus(config)),
            "GPU": float(torch.cuda.device_count()),
            **own_resources(config),
        }
        try:
            ray_place()
        except UserError as error:
            return [error]
        return missing_resources(config, have, [have])
    try:
        if address is not None:
            check_address(address, config.cluster.connect_timeout)
        with connected(config):
            return []
    except UserError as error:
        return user_errors(error)


def check_processors(config: RunConfig) -> list[UserError]:
    """An error for each part that asks a Ray of our own for more CPUs than this machine has.

    `opmix run` does what is asked all the same, slowly: its Ray has as many as the run asks for.
    """
    if joins_ray(config) or config.cluster.num_cpus is not None:
        return []
    have = os.cpu_count() or 1
    return [
        UserError(
            f"{demand.who} asks for {demand.count * demand.each['CPU']:g} CPUs, this machine has {have}",
            key=demand.key("CPU"),
            value=f"{demand.each['CPU']:g}",
            remedy=f"lower it{' or train.workers' if demand.count > 1 else ''}, or set cluster.num_cpus to share them",
        )
        for demand in demands(config)
        if demand.count * demand.each["CPU"] > have
    ]


def joins_ray(config: RunConfig) -> bool:
    """Whether a run goes to a Ray that is there."""
    return address_of(config) is not None or ray.is_initialized()


def check_resources(config: RunConfig) -> None:
    """Compare what a run asks for with what the connected cluster has, or may grow to.

    Raises:
        UserErrors: it has not enough of something, all together or on any one machine.
    """
    machines, types = machines_now(), machine_types()
    if types is None or (config.cluster.grows and not types):
        return  # whatever is missing may come
    limits = (
        _sum([(machine, 1) for machine in machines]),
        _sum([(each.resources, each.most) for each in types]),
    )
    have = {kind: max(limit.get(kind, 0.0) for limit in limits) for kind in {*limits[0], *limits[1]}}
    machines += [each.resources for each in types]
    errors = missing_resources(config, have, machines)
    if errors:
        raise UserErrors(errors)


def missing_resources(config: RunConfig, have: Resources, machines: Sequence[Resources]) -> list[UserError]:
    """An error for each kind of resource that the cluster has too little of.

    Args:
        config: the run.
        have: resources of the whole cluster.
        machines: the same, of every machine or type of machine.
    """
    errors = []
    for demand in demands(config):
        found = [_missing(config, demand, kind, have, machines) for kind in demand.each]
        wrong = [error for error in found if error is not None]
        if not wrong and not replace(demand, count=1).places(machines):
            wrong.append(
                UserError(
                    f"asks for {words(demand.each)} on one machine, no machine has them together",
                    key=demand.section,
                    remedy="lower one of them, or add machines",
                )
            )
        errors += wrong
    return errors


def _missing(
    config: RunConfig, demand: Demand, kind: str, have: Resources, machines: Sequence[Resources]
) -> UserError | None:
    """The error for one kind of resource that is too little, all together or on any one machine."""
    each, count, there = demand.each[kind], demand.count, have.get(kind, 0.0)
    largest = max((machine.get(kind, 0.0) for machine in machines), default=0.0)
    name = f"{kind}s" if kind in ("CPU", "GPU") else kind
    if each * count > there + ROUNDING:
        of_workers = f" for {count} workers" if count > 1 else ""
        problem = f"asks for {each * count:g} {name}{of_workers}, the cluster has {there:g}"
    elif each > largest + ROUNDING:
        problem = f"asks for {each:g} {name} on one machine, the largest has {largest:g}"
    else:
        return None
    remedy = f"lower it{f' or {demand.section}.workers' if count > 1 else ''}, or add machines"
    if kind == "CPU" and config.cluster.num_cpus is not None and address_of(config) is None:
        remedy += f", or raise cluster.num_cpus ({config.cluster.num_cpus})"
    if kind == "GPU" and demand.section in _ALSO_ON_CPUS:
        remedy += f", or set {demand.key(kind)} to 0: {_ALSO_ON_CPUS[demand.section]} then run on CPUs"
    return UserError(problem, key=demand.key(kind), value=each, remedy=remedy)


def _sum(machines: Sequence[tuple[Resources, int]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for resources, count in machines:
        for kind, amount in resources.items():
            total[kind] = total.get(kind, 0.0) + count * amount
    return total


def _join(address: str, timeout: float) -> None:
    check_address(address, timeout)
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(math.ceil(timeout)))
    try:
        with _quiet():
            ray.init(address=address, **_QUIET)
    except Exception as error:  # Ray has no common class for what can go wrong here
        raise UserError(
            f"Ray cannot be joined: {first_line(error)}",
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


_PATIENCE = 120  # seconds for all answers; a machine that does not answer in time is left to Ray


def check_reach(config: RunConfig, storage: Storage, prepared: Prepared) -> list[UserError]:
    """One error for each key whose files other machines do not see; those that are there now are asked.

    Args:
        config: the run.
        storage: its output, with state.json in it.
        prepared: its data.
    """
    files = {}
    if storage.is_local:
        files["output"] = storage.path(STATE)
    paths = [domain.path for domain in prepared.domains.values() if not is_uri(domain.path)]
    if paths:
        files["data.cache"] = paths[0]
    values = {"output": storage.uri, "data.cache": config.data.cache}
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    own = others.pop(here, None)
    asked = {_look.options(scheduling_strategy=on(node)).remote(files): address
             for node, address in others.items() if address != own}  # fmt: skip
    errors: dict[str, UserError] = {}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE) if asked else ([], [])
    for answer in done:
        try:
            lacking = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            errors["cluster.address"] = _without_package(asked[answer], error)
            continue
        except ray.exceptions.RayError:  # the machine has gone again
            continue
        for key in lacking:
            errors[key] = UserError(
                f"is not seen by the machine {asked[answer]}",
                key=key,
                value=values[key],
                remedy="name a directory that all machines share, or a URI such as s3://bucket/run",
            )
    return list(errors.values())


@ray.remote(num_cpus=0, max_retries=0)
def _look(files: Mapping[str, str]) -> list[str]:
    """Keys whose file or directory is not on this machine."""
    return [key for key, file in files.items() if not os.path.exists(file)]


def _without_package(address: str, error: ray.exceptions.RayTaskError) -> UserError:
    lines = str(error.cause or error).strip().splitlines()
    return UserError(
        f"its machine {address} cannot run this package: {lines[-1] if lines else type(error).__name__}",
        key="cluster.address",
        remedy="install opmix_ray there too, or submit the run as a job with --working-dir",
    )
