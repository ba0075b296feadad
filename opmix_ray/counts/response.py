"""A law's response that rests on counts: how an evaluation set's loss ends under each mixture."""

from __future__ import annotations

from typing import Any

import numpy as np

from opmix_ray.counts.ngrams import Counts, DataLeft, as_json
from opmix_ray.laws.base import Response, register


@register
class DataResponse(Response):
    """A set's loss at the end of a stage: what counting says, and what probes say beyond that.

        L(p) = level + trust * (n(p) - n(q)) + (p - q) . beyond

    with `n` the loss of the n-gram model and `q` the mixture in force.

    Args:
        level: predicted at q, nats per token.
        centre: (K,) q.
        trust: nats of the model for a nat of the n-gram model.
        beyond: (K,) what a unit of share changes beyond that, nats.
        doubt: standard error of `trust`.
        covariance: (K, K) of `beyond`.
        counts: of the set; None: nothing is known but `beyond`.
        data: what the stage reads; with `counts`.
        expand: (K, D) share of every domain in each of K components; None: they are the domains.
    """

    kind = "data"
    convex = False

    def __init__(
        self,
        level: float,
        centre: np.ndarray,
        trust: float,
        beyond: np.ndarray,
        doubt: float,
        covariance: np.ndarray,
        counts: Counts | None,
        data: DataLeft | None,
        expand: np.ndarray | None = None,
    ) -> None:
        self.level, self.trust, self.doubt = level, trust, doubt
        self.centre, self.beyond, self.covariance = centre, beyond, covariance
        self.counts, self.data, self.expand = counts, data, expand
        self._middle = float(self.counted(centre[None])[0])

    def seen_from(self, shares: np.ndarray) -> DataResponse:
        """The same predictions, with standard errors of differences from another mixture (K,)."""
        return DataResponse(
            float(self.predict(shares)[0]), shares, self.trust, self.beyond, self.doubt, self.covariance,
            self.counts, self.data, self.expand,
        )  # fmt: skip

    def counted(self, ratios: np.ndarray) -> np.ndarray:
        """The n-gram model's loss, (n, K) -> (n,); 0 where there is none."""
        if self.counts is None or self.data is None:
            return np.zeros(len(ratios))
        return self.counts.loss(ratios if self.expand is None else ratios @ self.expand, self.data)

    def predict(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        away = self.counted(ratios) - self._middle
        return self.level + self.trust * away + (ratios - self.centre) @ self.beyond

    def gradient(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        linear = np.broadcast_to(self.beyond, ratios.shape)
        if self.counts is None or self.data is None:
            return np.array(linear)
        if self.expand is None:
            return linear + self.trust * self.counts.gradient(ratios, self.data)
        return linear + self.trust * self.counts.gradient(ratios @ self.expand, self.data) @ self.expand.T

    def std(self, ratios: np.ndarray) -> np.ndarray:
        ratios = np.atleast_2d(ratios)
        away = ratios - self.centre
        variance = np.einsum("nk,kl,nl->n", away, self.covariance, away)
        return np.sqrt(variance + (self.doubt * (self.counted(ratios) - self._middle)) ** 2)

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "centre": self.centre.tolist(),
            "trust": self.trust,
            "beyond": self.beyond.tolist(),
            "doubt": self.doubt,
            "covariance": self.covariance.tolist(),
            "counts": None if self.counts is None else self.counts.to_text(),
            "data": None if self.data is None else as_json(self.data),
            "expand": None if self.expand is None else self.expand.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DataResponse:
        left = data["data"]
        return cls(
            data["level"], np.array(data["centre"]), data["trust"], np.array(data["beyond"]), data["doubt"],
            np.array(data["covariance"]),
            None if data["counts"] is None else Counts.from_text(data["counts"]),
            None if left is None
            else DataLeft(left["tokens_left"], np.array(left["used"]), np.array(left["distinct"])),
            None if data["expand"] is None else np.array(data["expand"]),
        )  # fmt: skip
