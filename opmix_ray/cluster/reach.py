"""Whether every machine of a cluster sees what the driver sees: this package, the run's output and its prepared data.

A directory of one machine as `output` is found out here, not when a worker's checkpoint is looked for in vain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray

from opmix_ray.config import RunConfig
from opmix_ray.data.prepare import Prepared
from opmix_ray.errors import UserError
from opmix_ray.node import on
from opmix_ray.output.state import STATE
from opmix_ray.paths import is_uri
from opmix_ray.storage import Storage

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
