"""OP-Mix: short LoRA probes on the model itself, a search over their sums, a law, a proposal, a check.

`Published` is what its paper and its published code describe (arXiv 2605.15220), as settings of our own runner: LoRA
probes of rank 16 and alpha 32 at twice the learning rate without warm-up, 90 % of each on its own domain; 40 random
mixtures per decision; the log-linear law as fitted, without extrapolation; KL 0.05 to the mixture in force; and the
proposal is taken without a check. What is ours and stays: it is fitted in data coordinates, every domain goes on where
it stood, and repetition caps hold.
"""

from __future__ import annotations

from typing import Any

from opmix_ray.config import RunConfig
from opmix_ray.config.objective import needs_losses
from opmix_ray.config.run import PRICE, candidates, with_slopes
from opmix_ray.data.prepare import Prepared
from opmix_ray.decision.budget import decision_size, pretrained
from opmix_ray.decision.make import Situation, make_decision
from opmix_ray.decision.old_part import choose_components
from opmix_ray.decision.progress import Progress
from opmix_ray.decision.rule import Decision
from opmix_ray.mixture import Mixture
from opmix_ray.model.architecture import probe_flops
from opmix_ray.output.ledger import Ledger
from opmix_ray.storage import Storage
from opmix_ray.strategies.base import Costs, Planned, Strategy
from opmix_ray.trials.space import read_space


class OPMix(Strategy):
    """What this package is for; arXiv 2605.15220."""

    def decide(
        self, config: RunConfig, prepared: Prepared, storage: Storage, situation: Situation,
        progress: Progress, ledger: Ledger,
    ) -> Decision:  # fmt: skip
        return make_decision(config, prepared, storage, situation, progress, ledger)

    def cost(self, config: RunConfig, planned: Planned, costs: Costs) -> float:
        names = planned.domains
        old = {name: float(name in planned.known) for name in names}
        mixture = Mixture(old) if any(old.values()) else Mixture.uniform(names)
        kind = read_space(planned.space)[0].kind
        components = len(choose_components(kind, mixture, Mixture.uniform(names)).names)
        size = decision_size(config, planned.stage, components, first=planned.first)
        # A model that has read something may know more than counting would teach: then it is asked first.
        knows = pretrained(config) or bool(planned.known)
        asked = costs.seen_of(size.asked) * costs.forward if knows and size.asked else 0.0
        if size.probe is None:  # it counts, and trains and scores nothing
            measured = planned.first and needs_losses(config.evaluation) and not asked
            return costs.seen_of(size.sequences) * costs.forward if measured else asked
        probe = size.probe
        count = components + probe.check  # one more, on all domains
        batch = probe.batch_size or config.train.batch_size
        tokens = count * probe.steps * batch * costs.length
        probes = probe_flops(costs.model, probe, tokens, costs.length)
        scored = candidates(config, components, size.trials) + 1  # the proposal is one more
        looks = scored * (PRICE if with_slopes(config, components, size.trials) else 1)
        looks += probe.check
        return asked + probes + looks * costs.seen_of(size.sequences) * costs.forward


class Published(OPMix):
    """OP-Mix with the published settings of `probe`, `search` and `proposal`."""

    decides = "once trained"

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
        return super().changes(config) | {"probe": probe, "search": search, "proposal": proposal}
