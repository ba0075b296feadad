"""A mixture in other trainers' own formats, and back: one module for each format, `formats` lists them.

    written = FORMATS["megatron"].write(handover)      # files by name, and what a person still has to do
    read_weights("old/blend.txt")                      # entries with weights, out of a file of any format

Some trainers count tokens, some documents. `handover.weights` converts with the measured mean lengths.
"""

from opmix_ray.exchange.formats import FORMATS, Format
from opmix_ray.exchange.handover import Handover, Part, Written
from opmix_ray.exchange.read import Weights, read_weights

__all__ = ["FORMATS", "Format", "Handover", "Part", "Weights", "Written", "read_weights"]
