"""What a cluster may grow to: the machine types of its autoscaler, as far as they can be seen from the driver.

Ray tells its drivers nothing about them. On the head's machine, where jobs run, the autoscaler's process names its
configuration; in a pod of KubeRay it can be seen that there is an autoscaler, but not what it may bring.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

_FILE, _ADDRESS = "--autoscaling-config=", "--gcs-address="
_KUBERAY = ("RAY_USAGE_STATS_KUBERAY_IN_USE", "RAY_NODE_TYPE_NAME")  # set in pods of a cluster that may grow


@dataclass(frozen=True)
class MachineType:
    """One kind of machine: what each has, and how many there may be at most."""

    resources: dict[str, float]
    most: int


def machine_types() -> list[MachineType] | None:
    """The types that may come; empty without an autoscaler, None where there is one that does not tell."""
    file = _configuration(ray.get_runtime_context().gcs_address)
    if file is not None:
        with suppress(OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            return _types(yaml.safe_load(file.read_text()))
        return None
    return None if set(_KUBERAY) <= os.environ.keys() else []


def _types(config: dict[str, Any]) -> list[MachineType]:
    """Of a configuration of `ray up`: the JSON or YAML file that the head's autoscaler was started with."""
    limit, head = int(config.get("max_workers", 0)), config.get("head_node_type")
    found = []
    for name, each in config["available_node_types"].items():
        most = min(limit, int(each.get("max_workers", 0 if name == head else limit)))
        if most:
            resources = {kind: float(amount) for kind, amount in each["resources"].items()}
            found.append(MachineType(resources, most))
    return found


def _configuration(address: str) -> Path | None:
    """The file of the autoscaler that works for the cluster at an address, if it runs on this machine."""
    port = address.rpartition(":")[2]  # one machine has several names, and one GCS at a port
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(word.startswith(_ADDRESS) and word.endswith(f":{port}") for word in words):
                for word in words:
                    if word.startswith(_FILE):
                        return Path(word.removeprefix(_FILE)).expanduser()
    return None
