"""Fit a law to anybody's sweep and propose a mixture: what is behind `opmix fit` and `opmix predict`.

fit_command("ratios.csv", "metrics.csv", "runs/fit", prior="uniform")
predict_command("runs/fit", "new.csv", "predicted.csv")
"""

from opmix_ray.fit.command import Told, closing_words, fit_command
from opmix_ray.fit.result import predict_command
from opmix_ray.fit.sweep import Sweep, read_sweep

__all__ = ["Sweep", "Told", "closing_words", "fit_command", "predict_command", "read_sweep"]
