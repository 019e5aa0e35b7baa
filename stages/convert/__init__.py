"""From a source to an ONNX graph that is known to say the same as the model it came from."""

from stages.convert.stage import CONVERT, ConvertOptions, convert

__all__ = ["CONVERT", "ConvertOptions", "convert"]
