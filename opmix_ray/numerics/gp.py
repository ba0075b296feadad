"""Numerics of Gaussian process regression with one relevance per input, a linear part and heavy-tailed noise.

Inputs `x` (n, D) and targets `y` (n,) are standardised by the caller. With `u = w x` the covariance is

    C = MEAN + line^2 u.u' + signal^2 k(bend |u - u'|) + diag(sigma^2 spread),   k: Matérn 5/2

so a target is a straight line in the inputs and what bends away from it, both along the inputs that matter. Few rows
are explained by the line; the bend grows with what it explains. The parameters are
`theta = (log w_1..D, log line, log signal, log bend, log sigma)`; they maximise the evidence times a normal prior, with
the analytic gradient in O(n^3 + n^2 D) for all of them together (Rasmussen and Williams 2006, section 5.4.1).

Noise is Student's t with few degrees of freedom, as a normal whose variance is scaled row by row: `spread` is the
fixed point of its expectation-maximisation, so a failed run loses its weight by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from opmix_ray.numerics.ridge import tail_spread

MEAN = 4.0  # prior variance of the mean, targets have variance 1
RELEVANCE = -np.log(
    3.0
)  # where the search for the logs of the relevances begins, and the mean of their prior
OTHERS = (0.0, -1.0, 0.0, np.log(0.1))  # the same of line, signal, bend and noise
PARAMETERS = len(OTHERS)  # besides the relevances
LINE, SIGNAL, BEND, NOISE = range(-PARAMETERS, 0)  # their places
RELEVANCE_PRECISION = 1.0  # of the prior of the relevances
PRECISION = 0.1  # of the others
BOUNDS = (-8.0, 4.0)
JITTER = 1e-8


@dataclass(frozen=True)
class Solved:
    """`alpha = C^-1 y` (n,), `inverse = C^-1` (n, n) and the variance of every row's noise (n,)."""

    alpha: np.ndarray
    inverse: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Kernel:
    """What a target and another have in common, without mean and noise.

    Args:
        line, bend: (n, m) the two parts.
        slope: (n, m) `-2` the derivative of `bend` by the square of `|u - u'|`.
    """

    line: np.ndarray
    bend: np.ndarray
    slope: np.ndarray

    @property
    def value(self) -> np.ndarray:
        """Their sum (n, m)."""
        return self.line + self.bend


def start_theta(inputs: int) -> np.ndarray:
    """Where the search for the parameters begins, and the mean of their prior, (D + 4,)."""
    return np.concatenate([np.full(inputs, RELEVANCE), OTHERS])


def kernel(a: np.ndarray, b: np.ndarray, theta: np.ndarray) -> Kernel:
    """Between the rows of `a` (n, D) and `b` (m, D)."""
    relevance = np.exp(theta[:-PARAMETERS])
    a, b = a * relevance, b * relevance
    product = a @ b.T
    square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * product
    bend = np.exp(2 * theta[BEND])
    root = np.sqrt(5 * bend * np.maximum(square, 0))
    decay = np.exp(2 * theta[SIGNAL] - root)
    slope = (5 / 3) * bend * (1 + root) * decay
    return Kernel(np.exp(2 * theta[LINE]) * product, (1 + root + root * root / 3) * decay, slope)


def variance(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Prior variance (n,) of the targets at inputs, noise not counted."""
    straight = np.exp(2 * theta[LINE]) * ((x * np.exp(theta[:-PARAMETERS])) ** 2).sum(axis=1)
    return MEAN + straight + np.exp(2 * theta[SIGNAL])


def _factor(kernel: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    covariance = kernel + MEAN
    covariance[np.diag_indices_from(covariance)] += noise + JITTER
    lower, failed = dpotrf(covariance, lower=1)
    if failed:
        return None
    inverse, _ = dpotri(lower, lower=1)  # zeros above the diagonal, as in `lower`
    inverse = inverse + inverse.T
    inverse[np.diag_indices_from(inverse)] /= 2
    return lower, inverse


def evidence(theta: np.ndarray, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log of evidence times prior, and its gradient (D + 4,)."""
    parts = kernel(x, x, theta)
    noise = np.exp(2 * theta[NOISE]) * spread
    factored = _factor(parts.value, noise)
    if factored is None:
        return 1e10, np.zeros_like(theta)
    lower, inverse = factored
    alpha = inverse @ y
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(lower)).sum())
    inner = inverse - np.outer(alpha, alpha)  # twice the derivative by the covariance
    slope = parts.slope * inner
    gradient = np.empty_like(theta)
    moved = (x * x * slope.sum(axis=1)[:, None]).sum(axis=0) - (x * (slope @ x)).sum(axis=0)
    squares = np.exp(2 * theta[:-PARAMETERS])
    bent = -moved * squares
    gradient[:-PARAMETERS] = bent + np.exp(2 * theta[LINE]) * squares * (x * (inner @ x)).sum(axis=0)
    gradient[LINE] = np.vdot(inner, parts.line)
    gradient[SIGNAL] = np.vdot(inner, parts.bend)
    gradient[BEND] = bent.sum()
    gradient[NOISE] = np.diag(inner) @ noise
    away = theta - start_theta(x.shape[1])
    precision = np.where(np.arange(len(theta)) < x.shape[1], RELEVANCE_PRECISION, PRECISION)
    return value + 0.5 * float(precision @ away**2), gradient + precision * away


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
    noise = np.exp(2 * theta[NOISE]) * spread
    factored = _factor(kernel(x, x, theta).value, noise)
    if factored is None:
        raise np.linalg.LinAlgError("the covariance of the rows is not positive definite")
    return Solved(factored[1] @ y, factored[1], noise)


def tails(solved: Solved, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spread (n,) of every row's noise given the posterior: one expectation step of Student's t (Lange 1989)."""
    residual = solved.noise * solved.alpha
    variance = np.maximum(solved.noise - solved.noise**2 * np.diag(solved.inverse), 0)
    surprise = (residual**2 + variance) * weights / np.exp(2 * theta[NOISE])
    return tail_spread(surprise) / weights


def leave_out(solved: Solved, y: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the rows `held` from all others under the same parameters, and their standard errors.

    Closed form (Rasmussen and Williams 2006, section 5.4.2).
    """
    block = np.linalg.inv(solved.inverse[np.ix_(held, held)])
    return y[held] - block @ solved.alpha[held], np.sqrt(np.diag(block))
