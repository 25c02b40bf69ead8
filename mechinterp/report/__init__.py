"""Offline HTML pages of runs and studies, and their figures."""

from mechinterp.report.page import write_report

__all__ = ["write_report"]
