"""`opmix doctor`: what this machine is like, what will be slow, and why. `opmix memory CONFIG`: what a run needs, from
its configuration alone; no data, no weights, no cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from opmix_ray.commands.options import Address, Config, Json, about


def doctor(
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show what this machine is like, and what will be slow.

    Versions, Ray, processors, GPUs, memory, shared memory, disks.
    """
    from opmix_ray.cluster.doctor import examine, summary
    from opmix_ray.commands.show import show

    findings = examine(address)
    found = summary(findings)
    show(found, found["findings"], as_json)
    if not as_json:
        counts = f"{found['wrong']} wrong, {found['slow']} slow"
        print(f"\n{counts}" if found["wrong"] or found["slow"] else "\nnothing wrong or slow was found")


def memory(
    config: Config,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key: --set model.recompute=true", metavar="KEY=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON and nothing else.")] = False,
) -> None:
    """Plan the memory that every part of a run needs.

    Workers of the main run, probes, evaluators, machines and the driver.
    """
    from opmix_ray.config import load_config

    loaded = load_config(config, settings)
    from opmix_ray.cluster.memory import plan_memory
    from opmix_ray.cluster.memory_check import memory_words
    from opmix_ray.commands.show import show

    with about(config):
        plan = plan_memory(loaded)
    show(plan, memory_words({"memory": plan, "warnings": []}), as_json)
