"""What ONNX Runtime's providers for NVIDIA GPUs are told: in a session here, and in the configuration of a Triton.

What ONNX Runtime's TensorRT provider keeps (engines and their shapes) has to be removed when the model changes, as its
documentation says (onnxruntime.ai, "TensorRT Execution Provider"). So every model has a folder of its own, named by its
digest, and a new release never meets the engine of another.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from model_repository.signature import Signature
from stages.artifact import Artifact
from stages.compile.options import AxisRange, CompileOptions
from stages.model import Model

__all__ = ["CUDA", "TENSORRT", "CudaOptions", "CudaProvider", "accelerator_parameters", "providers_for"]

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_MIB = 2**20
_TENSORRT_S_OWN = ("server_cache", "profile", "optimisation_level", "workspace_mib")


class CudaProvider(BaseModel):
    """What a recipe may say of ONNX Runtime on a GPU.

    `provider`: `tensorrt` gives to TensorRT what it can take, and to CUDA the rest. `tf32`: whether FP32 products may
    round their inputs to TF32. The others are TensorRT's: `server_cache`, a folder on the server in which it keeps
    engines and timings (without one it builds them each time that it loads the model); `profile`, the range of every
    dynamic axis by its name (without it an engine is built again whenever a request leaves the shapes seen so far);
    `optimisation_level`; `workspace_mib`, scratch memory of the engines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Literal["cuda", "tensorrt"] = "cuda"
    tf32: bool = True
    server_cache: str | None = None
    profile: dict[str, AxisRange] = Field(default_factory=dict)
    optimisation_level: int = Field(default=3, ge=0, le=5)
    workspace_mib: PositiveInt | None = None

    def __hash__(self) -> int:
        """Sessions are sorted by their options, and a dictionary has no hash of its own."""
        return hash(self.model_dump_json())

    @field_validator("server_cache")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and (not PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
            raise ValueError(f"a folder on the server is an absolute path, and {value!r} is none")
        return value

    @model_validator(mode="after")
    def _of_its_provider(self) -> Self:
        if self.provider == "tensorrt" and not self.tf32:
            raise ValueError(
                "ONNX Runtime's TensorRT provider has no switch for TF32: take `provider: cuda`, or the target "
                "tensorrt, which has one"
            )
        own = [
            name
            for name in _TENSORRT_S_OWN
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if self.provider == "cuda" and own:
            raise ValueError(f"{', '.join(own)}: that is for TensorRT; add `provider: tensorrt`")
        return self


class CudaOptions(CudaProvider):
    """`batch`: of the first axis of the inputs, where `profile` does not name it. `cache`: where engines and timings
    are kept here (default: the user's cache directory); it decides how long a start takes, and is no part of a step's
    key.
    """

    batch: AxisRange = AxisRange(min=1, opt=8, max=32)
    cache: Path | None = Field(default=None, exclude=True)


def providers_for(
    options: CudaOptions, artifact: Artifact, stream: int, *, fixed: bool
) -> list[tuple[str, dict[str, str]]]:
    """Providers of a session with their options, the one that is asked first in front.

    `stream`: the address of the CUDA stream that they compute on. `fixed`: no axis is dynamic, so that a CUDA graph can
    be captured. Raises `InputError` for a profile that does not fit the model's axes.
    """
    on_tensorrt = options.provider == "tensorrt"
    cuda = {
        "user_compute_stream": str(stream),
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(fixed and not on_tensorrt)),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    if not on_tensorrt:
        return [(CUDA, cuda)]
    described = Model.of(artifact)
    cache = str((options.cache or _default_cache()) / artifact.digest[:16])
    tensorrt = {"user_compute_stream": str(stream), "trt_builder_optimization_level": str(options.optimisation_level)}
    tensorrt |= _cache(cache, "True") | _shapes(described.signature, options) | {"trt_cuda_graph_enable": str(fixed)}
    if options.workspace_mib is not None:
        tensorrt["trt_max_workspace_size"] = str(options.workspace_mib * _MIB)
    if described.precision == "fp16":
        tensorrt["trt_fp16_enable"] = "True"
    return [(TENSORRT, tensorrt), (CUDA, cuda)]


def accelerator_parameters(options: CudaOptions, model: Artifact) -> dict[str, str] | None:
    """The parameters of Triton's accelerator `tensorrt` for a model, by the names that its backend `onnxruntime` knows;
    None where the provider is CUDA's.

    Raises `InputError` as `providers_for` does.
    """
    if options.provider == "cuda":
        return None
    described = Model.of(model)
    told = {"trt_builder_optimization_level": str(options.optimisation_level)} | _shapes(described.signature, options)
    if described.precision == "fp16":
        told["precision_mode"] = "FP16"
    if options.workspace_mib is not None:
        told["max_workspace_size_bytes"] = str(options.workspace_mib * _MIB)
    if options.server_cache is not None:
        told |= _cache(str(PurePosixPath(options.server_cache) / model.digest[:16]), "1")
    return told


def _cache(folder: str, yes: str) -> dict[str, str]:
    """`yes`: ONNX Runtime's Python package takes `True` for a switch of TensorRT's and refuses `1`."""
    return {
        "trt_engine_cache_enable": yes,
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": yes,
        "trt_timing_cache_path": folder,
    }


def _shapes(signature: Signature, options: CudaOptions) -> dict[str, str]:
    from stages.compile.profiles import profiles_of

    if not options.profile:
        return {}
    told = {}
    for profile in profiles_of(signature, CompileOptions(profiles=(options.profile,), batch=options.batch)):
        for which in ("min", "opt", "max"):
            shapes = ((name, getattr(shapes, which)) for name, shapes in profile.items())
            told[f"trt_profile_{which}_shapes"] = ",".join(f"{name}:{'x'.join(map(str, s))}" for name, s in shapes)
    return told


def _default_cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("optimize") / "onnxruntime-tensorrt"
