"""A decoder in ONNX for Triton's own ONNX Runtime backend: cache in, cache out.

`graph` makes it from what ONNX Runtime GenAI loads, `plain` holds the stages.
"""

from stages.language.decoder.plain import PLAIN_GRAPH, STEPS, PlainGraphOptions, StepsOptions

__all__ = ["PLAIN_GRAPH", "STEPS", "PlainGraphOptions", "StepsOptions"]
