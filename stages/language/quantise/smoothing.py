"""SmoothQuant: what makes activations hard to round is moved into the weights behind them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
arXiv:2211.10438, section 4: each channel of an activation is divided by a factor, the columns of the weights that take
it are multiplied by the same. The division is done in the weights of the norm before, so that nothing is to be
computed in addition, and the model says what it said.

That holds only where it is known which layers take which norm's output. llm-compressor has a table of that, and for an
architecture that is not in it takes Llama's, whose names mean something else in some. For Gemma 2 and 3 even its table
(0.14) is Llama's: their `post_attention_layernorm` comes after the attention, not before the MLP. So the answers are
compared here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.windows import Windows
from stages.errors import StageError
from stages.language.quantise.one_shot import apply
from stages.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["ensure_known", "smooth"]

_REMEDY = "`smoothing_strength: 0` goes without"
_DIFFERENCE = 0.2
"""Of the scores before and after, relative to their size. Rounding to bfloat16 makes 0.01, a wrong table 1."""

_POSITIONS = 64


def ensure_known(architecture: str) -> None:
    """Raises `StageError` if llm-compressor has no table for it."""
    from llmcompressor.modifiers.transform.smoothquant.dynamic_mappings import SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

    if architecture not in MAPPINGS_REGISTRY and architecture not in SMOOTHQUANT_DYNAMIC_MAPPING_REGISTRY:
        raise StageError(
            f"llm-compressor does not know which layers of {architecture} take which norm's output, so its activations "
            f"cannot be smoothed; {_REMEDY}"
        )


def smooth(network: PreTrainedModel, strength: float, windows: Windows, progress: Progress) -> frozenset[str]:
    """Smooth the activations of `network`, in which `strength` (0 < strength ≤ 1) of their range moves to the weights.

    Returns the names of the modules whose weights were changed. Raises `StageError` if the answers are others than
    before.
    """
    from compressed_tensors.utils import match_named_modules
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.smoothquant.dynamic_mappings import get_layer_mappings_from_model

    table = get_layer_mappings_from_model(network)
    before = _scores(network, windows)
    patterns = [pattern for mapping in table for pattern in (*mapping.balance_layers, mapping.smooth_layers)]
    smoothed = frozenset(name for name, _ in match_named_modules(network, patterns))
    modifier = SmoothQuantModifier(smoothing_strength=strength, mappings=table)
    apply(network, modifier, windows, progress, "smoothing the activations", smoothed=smoothed)
    difference = float((_scores(network, windows) - before).norm() / before.norm())
    if not difference < _DIFFERENCE:  # NaN is none, either
        raise StageError(
            f"smoothing has changed what {type(network).__name__} answers (by {difference:.2f} of the size of its "
            f"scores): llm-compressor is wrong about its norms; {_REMEDY}"
        )
    return smoothed


def _scores(network: PreTrainedModel, windows: Windows) -> torch.Tensor:
    """[1, positions, vocabulary] float32, of the first window."""
    import torch

    with torch.no_grad():
        scores: torch.Tensor = network(torch.from_numpy(windows.tokens[:1, :_POSITIONS])).logits.float().cpu()
    return scores
