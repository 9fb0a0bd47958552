"""The report of a study, made from its MLflow tracking store: one HTML file with a Markdown twin."""

from siclip_platform.report.page import ReportPaths, Result, read_result, write_report
from siclip_platform.report.read.query import Selection

__all__ = ["ReportPaths", "Result", "Selection", "read_result", "write_report"]
