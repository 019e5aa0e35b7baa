"""`build.sh`: the command that builds an engine again, beside the ONNX file that it is built from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from stages.compile.options import CompileOptions
from stages.compile.profiles import Profile

__all__ = ["build_script", "trtexec_arguments"]

_HARDWARE = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}


def build_script(name: str, graph: str, plan: str, profiles: Sequence[Profile], options: CompileOptions) -> str:
    """The text of a POSIX shell script that builds `plan` from `graph`, both beside it, with NVIDIA's `trtexec`."""
    arguments = " \\\n    ".join(shlex.quote(word) for word in trtexec_arguments(graph, plan, profiles, options))
    return f"""#!/bin/sh
# Builds the TensorRT engine of {name}. Run it on a machine with the GPU that will serve the engine, with the TensorRT
# version of its server; in NVIDIA's container of that server's release trtexec is installed.
set -eu
cd "$(dirname "$0")"
TRTEXEC="${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}"
exec "$TRTEXEC" \\
    {arguments}
"""


def trtexec_arguments(graph: str, plan: str, profiles: Sequence[Profile], options: CompileOptions) -> list[str]:
    """The arguments of `trtexec` (10.12 and later, and 11) for what `build_engine` builds."""
    # TensorRT 11 takes --stronglyTyped and does nothing with it; 10 needs it.
    words = [f"--onnx={graph}", f"--saveEngine={plan}", "--stronglyTyped", "--skipInference"]
    words += ["--profilingVerbosity=detailed", f"--builderOptimizationLevel={options.optimisation_level}"]
    words.append("--timingCacheFile=timing.cache")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    for wanted, word in (
        (not options.tf32, "--noTF32"),
        (options.version_compatible, "--versionCompatible"),
        (options.weight_streaming, "--allowWeightStreaming"),
        (options.strip, "--stripWeights"),
        (options.refit, "--refit"),
        (options.reproducible, "--errorOnTimingCacheMiss"),
        (
            options.hardware_compatible in _HARDWARE,
            f"--hardwareCompatibilityLevel={_HARDWARE.get(options.hardware_compatible)}",
        ),
    ):
        if wanted:
            words.append(word)
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={index}")
        for which in ("min", "opt", "max"):
            shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(s, which)))}" for name, s in profile.items())
            words.append(f"--{which}Shapes={shapes}")
    return words
