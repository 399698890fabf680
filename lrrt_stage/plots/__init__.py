"""Range tests as figures, and in a notebook.

A function takes the ``Axes`` to draw into as ``ax``, by default those of a new figure
(``ax.figure``), and returns them.
"""

from lrrt_stage.plots.comparison_plot import plot_losses, plot_ranges
from lrrt_stage.plots.curve_plot import plot_curve, plot_reading

__all__ = ["plot_curve", "plot_losses", "plot_ranges", "plot_reading"]
