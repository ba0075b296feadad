"""Which domain a metric belongs to: the one it is the held-out loss of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opmix_ray.errors import UserError


def own_domain(metric: str, domains: Sequence[str]) -> int | None:
    """The domain a metric is named after, or None: `eval_code_loss` and `metric/the_code_val_loss` -> `code`."""

    def core(name: str) -> str:
        name = re.sub(r"^(metric/|eval/|train/)", "", name.lower())
        name = re.sub(r"^(eval_|train_|metric_)", "", name)
        return re.sub(r"(_val|_eval|_test)?[_/](loss|bpb|ppl|perplexity|nll|ce)$", "", name)

    wanted = core(metric)
    matches = [index for index, domain in enumerate(domains) if core(domain) == wanted]
    return matches[0] if len(matches) == 1 else None


def owners(
    metrics: Sequence[str], domains: Sequence[str], given: Mapping[str, str] | None = None
) -> tuple[int | None, ...]:
    """For every metric the index of its own domain, or None.

    Args:
        metrics: M names.
        domains: D names.
        given: domain by metric, where names do not tell.

    Raises:
        UserError: a domain is given that is not there.
    """
    found = []
    for metric in metrics:
        domain = (given or {}).get(metric)
        if domain is not None and domain not in domains:
            raise UserError(
                f"the metric {metric} cannot belong to it", key="own", value=domain,
                remedy=f"the domains are {', '.join(domains)}",
            )  # fmt: skip
        found.append(own_domain(metric, domains) if domain is None else list(domains).index(domain))
    return tuple(found)
