"""Where a model comes from. `locate` takes what lies on this machine as it is; `fetch` brings or makes the rest.

One file for each kind: a Hugging Face directory, an ONNX file, a `torch.export` program, a Python function, MLflow.
"""

from stages.source.fetch import SOURCE, SourceOptions, fetch
from stages.source.locate import locate
from stages.source.name import suggest_name

__all__ = ["SOURCE", "SourceOptions", "fetch", "locate", "suggest_name"]
