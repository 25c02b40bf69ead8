"""One offline HTML page per run, and the figures it is made of."""

from mechinterp.report.page import write_report

__all__ = ["write_report"]
