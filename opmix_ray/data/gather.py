"""From a sampler's batch to its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opmix_ray.data.sampler import Batch
from opmix_ray.data.store import TokenStore


def gather(
    stores: Mapping[str, TokenStore], batch: Batch, own: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a batch's sequences, every store read once.

    Args:
        stores: of the batch's domains, all of one sequence length L.
        batch: names the sequences.
        own: which of its n rows.

    Returns:
        ids, int64 of shape (n, L), and mask, bool of shape (n, L): whether the token counts in the loss.
    """
    domain_ids, indices = batch.domain_ids[own], batch.indices[own]
    length = next(iter(stores.values())).seq_len
    ids, mask = np.zeros((len(indices), length), np.int64), np.ones((len(indices), length), bool)
    for position in np.unique(domain_ids):
        rows = np.flatnonzero(domain_ids == position)
        ids[rows], mask[rows] = stores[batch.domains[position]].batch(indices[rows])
    return ids, mask
