"""What a mixture would have come to, from the mixtures that were trained: a Gaussian process on log shares."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

EPS = 0.01


class Surrogate:
    """Objective as a function of the mixture.

    Args:
        shares: (N, D) trained mixtures.
        values: (N,) objective, nats.
    """

    def __init__(self, shares: np.ndarray, values: np.ndarray) -> None:
        self.shares, self.values = shares, values
        kernel = (
            ConstantKernel(1.0, (1e-3, 1e3)) * RBF(3.0, (0.7, 30.0))
            + ConstantKernel(0.1, (1e-4, 1e2)) * DotProduct(1.0, (1e-2, 1e2))
            + WhiteKernel(1e-3, (1e-6, 1e-1))
        )
        self._mean, self._scale = values.mean(), max(values.std(), 1e-9)
        self._model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model.fit(self._features(shares), (values - self._mean) / self._scale)

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,) nats."""
        return self._model.predict(self._features(np.atleast_2d(shares))) * self._scale + self._mean

    def left_out(self) -> np.ndarray:
        """Prediction of every mixture by all the others, (N,), with the kernel of all."""
        kernel = self._model.kernel_(self._features(self.shares))
        inverse = np.linalg.inv(kernel)
        y = (self.values - self._mean) / self._scale
        return self.values - self._scale * (inverse @ y) / np.diag(inverse)

    def minimum(self, count: int = 20000) -> np.ndarray:
        """The best mixture (D,) among many near the trained ones."""
        rng = np.random.default_rng(0)
        size = self.shares.shape[1]
        best = self.shares[np.argsort(self.values)[:6]]
        pool = [self.shares, rng.dirichlet(np.ones(size), count // 4)]
        pool += [rng.dirichlet(k * row + 0.2, count // 24) for row in best for k in (8, 20, 60)]
        candidates = np.concatenate(pool)
        found = candidates[np.argmin(self(candidates))]
        for width in (100.0, 300.0, 1000.0):
            near = np.vstack([found[None], rng.dirichlet(width * found + 0.1, 2000)])
            found = near[np.argmin(self(near))]
        return found

    @staticmethod
    def _features(shares: np.ndarray) -> np.ndarray:
        return np.log(shares + EPS)
