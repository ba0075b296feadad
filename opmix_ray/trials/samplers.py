"""Optuna samplers by name, seeded."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler

from opmix_ray.errors import UserError


def make_sampler(name: str, seed: int, startup: int) -> BaseSampler:
    """An Optuna sampler.

    Args:
        name: `gp` (Gaussian process, log expected improvement), `tpe`, `qmc` (scrambled Sobol), `cmaes`, `random`.
        seed: of everything it draws.
        startup: candidates drawn at random before `gp` and `tpe` begin to model.

    Raises:
        UserError: an unknown name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, deterministic_objective=True
            )
        if name == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
            )
        if name == "qmc":
            return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
    raise UserError(
        "no such sampler", key="search.sampler", value=name, remedy="use gp, tpe, qmc, cmaes or random"
    )
