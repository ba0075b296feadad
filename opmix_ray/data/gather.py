"""From a sampler's batch to its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opmix_ray.data.sampler import Batch
from opmix_ray.data.store import TokenStore


def gather(
    stores: Mapping[str, TokenStore], batch: Batch, own: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a batch's sequences.

    Args:
        stores: of the batch's domains, all of one sequence length L.
        batch: names the sequences.
        own: which of its n rows.

    Returns:
        ids, int64 of shape (n, L), and mask, bool of shape (n, L): whether the token counts in the loss.
    """
    domain_ids, indices = batch.domain_ids[own].tolist(), batch.indices[own].tolist()
    length = next(iter(stores.values())).seq_len
    ids, mask = np.empty((len(indices), length), np.int64), np.ones((len(indices), length), bool)
    for row, (position, index) in enumerate(zip(domain_ids, indices, strict=True)):
        stores[batch.domains[position]].copy(index, ids[row], mask[row])
    return ids, mask
