"""One HTML page about a run, and its figures as files.

    write_report(Storage("runs/demo"))   # -> runs/demo/report.html
    figures(Storage("runs/demo"))        # -> runs/demo/figures/*.png, *.svg

Both work at any moment of a run and say what is not there yet.
"""

from opmix_ray.report.page import REPORT, figures, render, write_report

__all__ = ["REPORT", "figures", "render", "write_report"]
