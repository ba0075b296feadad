"""`opmix discover`: one pile of documents that nobody has sorted, into domains.

summary = discover(["pile.jsonl"], "domains", domains=8)
more = discover(["new.jsonl"], "more", like="domains")
"""

from opmix_ray.pile.make import DOMAINS, discover

__all__ = ["DOMAINS", "discover"]
