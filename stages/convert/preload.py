"""Imports what conversion needs, at once: for the process that workers are forked from, and for `transformers_model`.

transformers imports scikit-learn, and with it SciPy and pandas, for one function of assisted text generation that is
not used here; leaving it out saves a fifth of the time and 100 MB.
"""

from __future__ import annotations

import onnx
import onnxruntime
import onnxscript
import torch
import torch.onnx._internal.exporter._core
import transformers.utils

_available = transformers.utils.is_sklearn_available
transformers.utils.is_sklearn_available = lambda: False
try:
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto
finally:
    transformers.utils.is_sklearn_available = _available

__all__ = ["onnx", "onnxruntime", "onnxscript", "torch", "transformers"]
