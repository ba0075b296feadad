"""`auto`: the law, or the stack of laws, that cross-validation on the rows at hand prefers."""

from __future__ import annotations
