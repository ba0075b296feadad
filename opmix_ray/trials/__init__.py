"""Candidate mixtures as trials of Ray Tune, asked of Optuna and scored on the shared model."""
