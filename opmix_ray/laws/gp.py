"""Numerics of Gaussian process regression with one length scale per input and heavy-tailed noise.

Inputs `x` (n, D) and targets `y` (n,) are standardised by the caller. The covariance is a constant for the mean, a
Matérn 5/2 kernel and noise: `C = MEAN + s^2 k(r) + diag(sigma^2 spread)`, `r^2 = sum_d (w_d (x_d - x'_d))^2`. The
parameters are `theta = (log w_1..D, log s, log sigma)`; they maximise the evidence times a wide normal prior, with
the analytic gradient in O(n^3 + n^2 D) for all of them together (Rasmussen and Williams 2006, section 5.4.1).

Noise is Student's t with few degrees of freedom, as a normal whose variance is scaled row by row: `spread` is the
fixed point of its expectation-maximisation, so a failed run loses its weight by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from opmix_ray.laws.tails import tail_spread

MEAN = 4.0  # prior variance of the mean, targets have variance 1
START = (-np.log(3.0), 0.0, np.log(0.1))  # log inverse length, log signal, log noise
PRECISION = 0.1  # of the prior of all parameters
BOUNDS = (-8.0, 4.0)
JITTER = 1e-8


@dataclass(frozen=True)
class Solved:
    """`alpha = C^-1 y` (n,), `inverse = C^-1` (n, n) and the variance of every row's noise (n,)."""

    alpha: np.ndarray
    inverse: np.ndarray
    noise: np.ndarray


def start_theta(inputs: int) -> np.ndarray:
    """Where the search for the parameters begins, and the mean of their prior, (D + 2,)."""
    return np.concatenate([np.full(inputs, START[0]), START[1:]])


def matern(a: np.ndarray, b: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel between the rows of `a` (n, D) and `b` (m, D), and `-2` its derivative by `r^2`, both (n, m)."""
    inverse_length = np.exp(theta[:-2])
    a, b = a * inverse_length, b * inverse_length
    square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    root = np.sqrt(5 * np.maximum(square, 0))
    decay = np.exp(2 * theta[-2] - root)
    slope = (5 / 3) * (1 + root) * decay
    return (1 + root + root * root / 3) * decay, slope


def _factor(kernel: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    covariance = kernel + MEAN
    covariance[np.diag_indices_from(covariance)] += noise + JITTER
    lower, failed = dpotrf(covariance, lower=1)
    if failed:
        return None
    inverse, _ = dpotri(lower, lower=1)
    inverse = np.tril(inverse)
    return lower, inverse + np.tril(inverse, -1).T


def evidence(theta: np.ndarray, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log of evidence times prior, and its gradient (D + 2,)."""
    kernel, slope = matern(x, x, theta)
    noise = np.exp(2 * theta[-1]) * spread
    factored = _factor(kernel, noise)
    if factored is None:
        return 1e10, np.zeros_like(theta)
    lower, inverse = factored
    alpha = inverse @ y
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(lower)).sum())
    inner = inverse - np.outer(alpha, alpha)  # twice the derivative by the covariance
    slope *= inner
    gradient = np.empty_like(theta)
    moved = (x * x * slope.sum(axis=1)[:, None]).sum(axis=0) - (x * (slope @ x)).sum(axis=0)
    gradient[:-2] = -moved * np.exp(2 * theta[:-2])
    gradient[-2] = np.vdot(inner, kernel)
    gradient[-1] = np.diag(inner) @ noise
    away = theta - start_theta(x.shape[1])
    return value + 0.5 * PRECISION * float(away @ away), gradient + PRECISION * away


def optimise(
    x: np.ndarray, y: np.ndarray, spread: np.ndarray, theta: np.ndarray, steps: int
) -> tuple[np.ndarray, float]:
    """Parameters at the best evidence reached in `steps` steps from `theta`, and its negative log."""
    answer = minimize(
        evidence, theta, args=(x, y, spread), jac=True, method="L-BFGS-B",
        bounds=[BOUNDS] * len(theta), options={"maxiter": steps, "maxcor": 20},
    )  # fmt: skip
    return answer.x, float(answer.fun)


def solve(theta: np.ndarray, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> Solved:
    """The posterior under given parameters.

    Raises:
        numpy.linalg.LinAlgError: the covariance is not positive definite.
    """
    noise = np.exp(2 * theta[-1]) * spread
    factored = _factor(matern(x, x, theta)[0], noise)
    if factored is None:
        raise np.linalg.LinAlgError("the covariance of the rows is not positive definite")
    return Solved(factored[1] @ y, factored[1], noise)


def tails(solved: Solved, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spread (n,) of every row's noise given the posterior: one expectation step of Student's t (Lange 1989)."""
    residual = solved.noise * solved.alpha
    variance = np.maximum(solved.noise - solved.noise**2 * np.diag(solved.inverse), 0)
    surprise = (residual**2 + variance) * weights / np.exp(2 * theta[-1])
    return tail_spread(surprise) / weights


def leave_out(solved: Solved, y: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the rows `held` from all others under the same parameters, and their standard errors.

    Closed form (Rasmussen and Williams 2006, section 5.4.2).
    """
    block = np.linalg.inv(solved.inverse[np.ix_(held, held)])
    return y[held] - block @ solved.alpha[held], np.sqrt(np.diag(block))
