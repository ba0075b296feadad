"""mixture.json: the mixture in force, every one before it, and what other trainers need to know of the domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opmix_ray.data.prepare import Prepared
from opmix_ray.output.state import MIXTURE
from opmix_ray.storage import Storage


def write_mixture(
    storage: Storage, mixture: Mapping[str, float], history: Sequence[Mapping[str, Any]], prepared: Prepared
) -> None:
    """Write mixture.json.

    Args:
        storage: the run's output.
        mixture: share of training tokens by domain.
        history: every mixture with the step it began at, its stage, and why.
        prepared: the data; training documents and the tokens that these are go along, so that shares of tokens can
            become shares of documents.
    """
    counted = {
        name: {"documents": domain.train_documents, "tokens": domain.train_tokens}
        for name, domain in prepared.domains.items()
    }
    storage.write_json(
        MIXTURE, {"mixture": dict(mixture), "history": [dict(entry) for entry in history], "domains": counted}
    )
