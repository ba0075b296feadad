"""Candidates, laws' use, decisions. The package can be called: `opmix_ray.search(...)` is `opmix_ray.api.search`.

It has the name of a function of the package above, which would else be hidden once a module in here is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opmix_ray.search.decide import Decision


class _Package(ModuleType):
    def __call__(self, **options: Any) -> Decision:
        """See `opmix_ray.api.search`."""
        from opmix_ray.api import search

        return search(**options)


sys.modules[__name__].__class__ = _Package
