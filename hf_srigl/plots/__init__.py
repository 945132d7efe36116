"""Pictures of what sparse training did. They take reports, never a model; matplotlib is needed only when drawing.

`plot_topology` draws a training, `plot_layers` a model, `plot_comparison` a model beside its dense twin.
"""

from hf_srigl.plots.comparison import Measure, plot_comparison
from hf_srigl.plots.layers import plot_layers
from hf_srigl.plots.training import plot_topology

__all__ = ["Measure", "plot_comparison", "plot_layers", "plot_topology"]
