"""Following a run from outside: TensorBoard always, other trackers through Ray's callbacks, a terminal.

with watching(config, storage, state, rows) as watch:
    watch.row(row)
"""

from opmix_ray.watch.watch import Watch, watching

__all__ = ["Watch", "watching"]
