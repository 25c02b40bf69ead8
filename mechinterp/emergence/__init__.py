"""Emergence: when a measure makes its transition over training, and whether it makes one."""

from mechinterp.emergence.compare import acquisition_step, compare_emergence, median_interval
from mechinterp.emergence.crossing import first_above, half_rise, level_crossing
from mechinterp.emergence.locate import (
    Emergence,
    Shape,
    describe,
    emergence_table,
    locate_all,
    locate_emergence,
    locate_or_say_why,
    steps_around,
)

__all__ = [
    "Emergence",
    "Shape",
    "acquisition_step",
    "compare_emergence",
    "describe",
    "emergence_table",
    "first_above",
    "half_rise",
    "level_crossing",
    "locate_all",
    "locate_emergence",
    "locate_or_say_why",
    "median_interval",
    "steps_around",
]
