"""OP-Mix as its paper and its published code describe it (arXiv 2605.15220), as settings of our own runner.

LoRA probes of rank 16 and alpha 32 at twice the learning rate without warm-up, 90 % of each on its own domain;
40 random mixtures per decision; the log-linear law as fitted, without extrapolation; KL 0.05 to the mixture in
force; and the proposal is taken without a check. What is ours and stays: it is fitted in data coordinates, every
domain goes on where it stood, and repetition caps hold.
"""

from __future__ import annotations

from typing import Any

from opmix_ray.config import RunConfig
from opmix_ray.strategies.opmix import OPMix


class Published(OPMix):
    """OP-Mix with the published settings of `probe`, `search` and `proposal`."""

    def changes(self, config: RunConfig) -> dict[str, Any]:
        own = config.strategies.opmix_published
        probe: dict[str, Any] = {
            "rank": 16,
            "alpha": 32.0,
            "learning_rate_ratio": 2.0,
            "new_share": 0.9,
            "check": False,
        }
        if own.probe_steps is not None:
            probe["steps"] = own.probe_steps
        search = {"budget": None, "trials": own.trials, "sampler": "random", "gradients": False}
        proposal = {"law": "log-linear", "kl": 0.05, "prior": "current", "verify": False}
        return {"probe": probe, "search": search, "proposal": proposal}
