"""The gate: a pure function from stored per-sample results, measured figures and limits to a verdict. It runs nothing.

`pass` is promised to be wrong in at most 5 % of the cases where a variant truly breaks a limit (`Limits.confidence`):
every bound is one-sided and accounts for what was not seen (`resampling`).
"""

from stages.gate.judge import judge
from stages.gate.judgement import FidelityFigures, Gate, Judgement, Limits, MetricFigures, Verdict

__all__ = ["FidelityFigures", "Gate", "Judgement", "Limits", "MetricFigures", "Verdict", "judge"]
