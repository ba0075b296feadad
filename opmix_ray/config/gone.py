"""Keys that configurations once had: a file that still has one is told what to do instead.

gone("probe.settle")       # "all probes have the same length: set probe.steps"
without_gone(tree)         # an earlier run's own config.yaml, which was written with every key
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from typing import Any

_NOT_TRAINED_ON = "an evaluation set is never trained on, so leave it out"

# Key, with `*` for a name or a position -> what to do instead.
GONE = {
    "evaluation.sets.*.min_share": _NOT_TRAINED_ON,
    "evaluation.sets.*.max_share": _NOT_TRAINED_ON,
    "evaluation.sets.*.max_epochs": _NOT_TRAINED_ON,
    "evaluation.sets.*.group": _NOT_TRAINED_ON,
    "evaluation.sets.*.renamed_from": _NOT_TRAINED_ON,
    "evaluation.sets.*.split_from": _NOT_TRAINED_ON,
    "probe.settle": "all probes have the same length: set probe.steps",
    "probe.settle_every": "all probes have the same length: set probe.steps",
    "search.chunks": "every candidate sees all sequences: lower search.sequences for a cheaper search",
    "probe.max_retries": "set cluster.max_retries",
    "search.batch_size": "set evaluation.batch_size",
    "search.max_retries": "set cluster.max_retries",
    "evaluation.harness.batch_size": "set evaluation.batch_size",
    "stages.*.overlap_steps": "set overlap to the number of steps",
    "search.patience": "all candidates are scored: lower search.trials for a cheaper search",
    "search.scheduler": "every candidate sees all sequences: lower search.sequences for a cheaper search",
    "strategies.swarm.law": "it is log-linear: leave it out",
    "strategies.swarm.kl": "it is 0.05: leave it out",
    "strategies.swarm.concentration": "it is 0.5 to 5: leave it out",
    "strategies.mergemix.law": "it is log-linear: leave it out",
    "strategies.mergemix.kl": "it is 0.05: leave it out",
    "train.optimizer.eps": "it is 1e-8: leave it out",
    "strategies.aioli.ema": "it is 0.1: leave it out",
    "strategies.doremi.smoothing": "it is 0.001: leave it out",
    "strategies.doremi.reference": "the reference reads in proportion to tokens: leave it out",
    "proposal.confidence": "the interval is of 95 %: leave it out",
    "proposal.bootstrap": "the interval takes 2,000 resamples: leave it out",
    "proposal.eps_steps": "it is a measured constant, 2 steps: leave it out",
    "proposal.slope_growth": "it is a measured constant, 1.4: leave it out",
    "proposal.slope_trust": "it is a measured constant, 0.4: leave it out",
    "proposal.transfer_trust": "it is a measured constant, 0.25: leave it out",
}


def gone(key: str) -> str | None:
    """What to do instead of a dotted key that is gone; None where there never was such a key."""
    return next(
        (remedy for pattern, remedy in GONE.items() if _fits(key.split("."), pattern.split("."))), None
    )


def _fits(key: list[str], pattern: list[str]) -> bool:
    return len(key) == len(pattern) and all(map(fnmatchcase, key, pattern))


def without_gone(tree: Any) -> Any:
    """A configuration's tree without the keys that are gone."""
    tree = copy.deepcopy(tree)
    for pattern in GONE:
        *above, last = pattern.split(".")
        for node in _below(tree, above):
            node.pop(last, None)
    return tree


def _below(node: Any, path: list[str]) -> list[dict[str, Any]]:
    """The mappings at the end of a path with `*` in it."""
    if not isinstance(node, dict | list):
        return []
    if not path:
        return [node] if isinstance(node, dict) else []
    named = node if isinstance(node, dict) else {str(position): each for position, each in enumerate(node)}
    return [
        found for name, each in named.items() if path[0] in ("*", name) for found in _below(each, path[1:])
    ]
