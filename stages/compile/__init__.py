"""From an ONNX graph to a TensorRT engine, for TensorRT 10.12 and later and 11: always strongly typed, so that the
precision is what the graph says.

`stage` is the stage. `options` and `profiles` say what is built, `dtypes` holds the graph against what it promises,
`builder` builds, `inspector` reads from the engine what became of it, `script` writes the command that builds it again
elsewhere, and `elsewhere` holds engines from there against the one that they are published with. `api` lists what of
TensorRT's Python package is used.
"""

from stages.compile.options import AxisRange, CompileOptions, TensorRtOptions, TensorRtRecipe

__all__ = ["AxisRange", "CompileOptions", "TensorRtOptions", "TensorRtRecipe"]
