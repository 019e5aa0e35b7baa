"""Imports what runs checkpoints, at once and in silence: for the process that workers are forked from.

As `stages.convert.preload` does, it leaves out scikit-learn, and pandas with it, which transformers imports for one
function of assisted generation that is not used here.
"""

from __future__ import annotations

from stages.language.runtime.silence import silence

with silence():
    import torch
    import transformers.utils

    _available = transformers.utils.is_sklearn_available
    transformers.utils.is_sklearn_available = lambda: False
    try:
        import transformers.modeling_layers
        import transformers.models.auto.modeling_auto
    finally:
        transformers.utils.is_sklearn_available = _available

__all__ = ["torch", "transformers"]
