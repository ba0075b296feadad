"""`opmix doctor`: what this machine is like, what will be slow, and why."""

from __future__ import annotations

from opmix_ray.commands.options import Address, Json


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
