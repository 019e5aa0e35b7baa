"""Comparing what was measured: runs, registered versions, releases; which differences are real, and by what.

`reference` reads what was asked for; `find` gets its figures; `difference` weighs two; `table` prints.
"""

from pipeline.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
