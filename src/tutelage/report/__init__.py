"""The report: run folders read, drawn and written as one HTML file that needs no network."""

from tutelage.report.page import write_report

__all__ = ["write_report"]
