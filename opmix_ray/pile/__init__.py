"""`opmix discover`: one pile of documents that nobody has sorted, into domains.

from opmix_ray.pile.make import discover

summary = discover(["pile.jsonl"], "domains", domains=8)
more = discover(["new.jsonl"], "more", like="domains")
"""

DOMAINS = 8  # where nobody says how many
