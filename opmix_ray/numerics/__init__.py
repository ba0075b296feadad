"""Numerics that know nothing of mixtures or laws: ridge, Gaussian processes, heavy tails, BLAS threads."""
