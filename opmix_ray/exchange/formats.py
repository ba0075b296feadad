"""The formats by name, and what their numbers count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opmix_ray.exchange.axolotl import write_axolotl
from opmix_ray.exchange.energon import write_energon
from opmix_ray.exchange.handover import Handover, Unit, Written
from opmix_ray.exchange.hf_datasets import write_datasets
from opmix_ray.exchange.llamafactory import write_llamafactory
from opmix_ray.exchange.megatron import write_blend, write_nemo
from opmix_ray.exchange.mosaic import write_streaming
from opmix_ray.exchange.olmix import write_olmix
from opmix_ray.exchange.olmo_core import write_olmo_core
from opmix_ray.exchange.torchtitan import write_torchtitan


@dataclass(frozen=True)
class Format:
    """Another trainer's format.

    Args:
        write: a mixture as its files.
        unit: what its weights count.
        free: whether that depends on the data, so that the user may say it.
    """

    write: Callable[[Handover, Unit], Written]
    unit: Unit = "tokens"
    free: bool = False


FORMATS: dict[str, Format] = {
    "megatron": Format(write_blend),
    "megatron-energon": Format(write_energon, "documents", free=True),
    "olmo-core": Format(write_olmo_core),
    "nemo": Format(write_nemo),
    "torchtitan": Format(write_torchtitan),
    "llamafactory": Format(write_llamafactory, "documents", free=True),
    "axolotl": Format(write_axolotl, "documents"),
    "datasets": Format(write_datasets, "documents", free=True),
    "streaming": Format(write_streaming, "documents", free=True),
    "olmix": Format(write_olmix),
}
