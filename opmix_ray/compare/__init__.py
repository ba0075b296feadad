"""One table for many strategies on the same data, model, steps and seeds, every cost counted.

table = compare(config, ["proportional", "opmix"], seeds=3, output="runs/compare")
"""

from __future__ import annotations

from opmix_ray.compare.run import compare as compare
