"""Progress measures over training: one file per measure, and a registry.

Importing this package imports all its modules, which register their measures.
"""

from importlib import import_module
from pkgutil import iter_modules

from mechinterp.measures.base import MEASURES, Measure, Observation, Requirement, register, unregister
from mechinterp.measures.table import columns_for, columns_of, main_measure, measure

__all__ = [
    "MEASURES",
    "Measure",
    "Observation",
    "Requirement",
    "columns_for",
    "columns_of",
    "main_measure",
    "measure",
    "register",
    "unregister",
]

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
