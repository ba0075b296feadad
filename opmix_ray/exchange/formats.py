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
        title: what it is, in words.
        write: a mixture as its files.
        unit: what its weights count.
        free: whether that depends on the data, so that the user may say it.
    """

    title: str
    write: Callable[[Handover, Unit], Written]
    unit: Unit = "tokens"
    free: bool = False


FORMATS: dict[str, Format] = {
    "megatron": Format("Megatron-LM blend for --data-args-path", write_blend),
    "megatron-energon": Format("Megatron-Energon metadata set", write_energon, "documents", free=True),
    "olmo-core": Format("OLMo-core source mixture list", write_olmo_core),
    "nemo": Format("NeMo (Megatron-Bridge) blend", write_nemo),
    "torchtitan": Format("torchtitan interleaved data loader", write_torchtitan),
    "llamafactory": Format("LLaMA-Factory data sets", write_llamafactory, "documents", free=True),
    "axolotl": Format("Axolotl data sets", write_axolotl, "documents"),
    "datasets": Format("Hugging Face datasets.interleave_datasets", write_datasets, "documents", free=True),
    "streaming": Format("MosaicML Streaming streams", write_streaming, "documents", free=True),
    "olmix": Format("olmix fit and mixture", write_olmix),
}
