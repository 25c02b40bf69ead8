"""What is watched over training: one progress measure per file, one signature, one registry."""

from mechinterp.measures import accuracy, cla, ila1, loss, tca, tila2, tla2  # noqa: F401  (each registers its measures)
from mechinterp.measures.base import MEASURES, Measure, Observation, register
from mechinterp.measures.table import columns_for, columns_of, measure

__all__ = ["MEASURES", "Measure", "Observation", "columns_for", "columns_of", "measure", "register"]
