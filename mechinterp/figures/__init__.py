"""Plotly figures of runs and of their tables, for notebooks, pages and papers.

    import mechinterp as mi
    run = mi.open_run("checkpoints/reddy2023-fast-0.h5")
    mi.figures.progress_measures(run)

Functions that take a run compute what they draw (`mi.measure`, `mi.analyse`) and return a figure, no file; those that
take a table draw it. `pictures.write_pictures` makes SVG, PDF and PNG of a figure.
"""

from mechinterp.figures.analysed import (
    SIZES,
    SYMBOLS,
    ablation,
    attention,
    circuit,
    interactions,
    order_parameter_table,
    order_parameters,
    paths,
    qk_ov,
)
from mechinterp.figures.geometry import geometry_curves
from mechinterp.figures.lines import SPIKE_COLOUR, aligned_curves, curves, trajectories
from mechinterp.figures.maps import attention_map, block_map, token_names
from mechinterp.figures.measured import (
    accuracy,
    aligned,
    crossings,
    loss,
    progress_columns,
    progress_measures,
    since,
)
from mechinterp.figures.paper import Column, paper
from mechinterp.figures.planes import order_parameter_curves, plane
from mechinterp.figures.strips import emergence, strip
from mechinterp.figures.style import COLOURS, PALETTE, colours_of, styled
from mechinterp.figures.transplants import formation_curves, transplant_maps
from mechinterp.labels import head_name

__all__ = [
    "COLOURS",
    "PALETTE",
    "SIZES",
    "SPIKE_COLOUR",
    "SYMBOLS",
    "Column",
    "ablation",
    "accuracy",
    "aligned",
    "aligned_curves",
    "attention",
    "attention_map",
    "block_map",
    "circuit",
    "colours_of",
    "crossings",
    "curves",
    "emergence",
    "formation_curves",
    "geometry_curves",
    "head_name",
    "interactions",
    "loss",
    "order_parameter_curves",
    "order_parameter_table",
    "order_parameters",
    "paper",
    "paths",
    "plane",
    "progress_columns",
    "progress_measures",
    "qk_ov",
    "since",
    "strip",
    "styled",
    "token_names",
    "trajectories",
    "transplant_maps",
]
