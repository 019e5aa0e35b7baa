"""The report of a run: one HTML file that needs nothing beside it, plots included.

`markup` writes HTML and escapes it, `plot` knows scales and axes, `labels` keeps words apart, one file draws each
chart, `page` puts them in order.
"""

from pipeline.report.page import report_page, write_report

__all__ = ["report_page", "write_report"]
