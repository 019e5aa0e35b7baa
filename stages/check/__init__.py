"""Accuracy and fidelity: a model's results on the evaluation data, sample by sample, for the gate to judge.

`check` is the stage; `metrics` what is computed from the truth; `fidelity` what is compared with the baseline;
`outputs` the baseline's answers on disk; `predictions` what the answers mean; `per_sample` what the gate reads.
"""

from stages.check.check import CHECK, CheckOptions, check
from stages.check.per_sample import PerSample

__all__ = ["CHECK", "CheckOptions", "PerSample", "check"]
