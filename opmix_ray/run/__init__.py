"""Stages from the first token to the last. The package can be called: `opmix_ray.run(config)` is `opmix_ray.api.run`.

It has the name of a function of the package above, which would else be hidden once a module in here is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opmix_ray.api import Config


class _Package(ModuleType):
    def __call__(self, config: Config, **options: Any) -> dict[str, Any]:
        """See `opmix_ray.api.run`."""
        from opmix_ray.api import run

        return run(config, **options)


sys.modules[__name__].__class__ = _Package
