"""A mixture in other trainers' own formats, and back: one module for each family of formats; `FORMATS` lists them.

    written = FORMATS["megatron"].write(handover)      # files by name, and what a person still has to do
    read_weights("old/blend.txt")                      # entries with weights, out of a file of any format

Some trainers count tokens, some documents. `handover.weights` converts with the measured mean lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opmix_ray.exchange.handover import Handover, Part, Unit, Written
from opmix_ray.exchange.interleave import write_datasets, write_streaming, write_torchtitan
from opmix_ray.exchange.megatron import write_blend, write_energon, write_nemo
from opmix_ray.exchange.olmo import write_olmix, write_olmo_core
from opmix_ray.exchange.read import Weights, read_weights
from opmix_ray.exchange.tuning import write_axolotl, write_llamafactory

__all__ = ["FORMATS", "Format", "Handover", "Part", "Weights", "Written", "read_weights"]


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
