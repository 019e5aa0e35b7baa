"""Every attribute, enum and signature of TensorRT that the code uses exists in the real bindings of 10 and of 11."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import stand_in_cuda
from real_bindings import Bindings

from stages.compile.api import SIGNATURES, USED
from stages.gpu import gpus

ROOT = Path(__file__).parent.parent.parent
SOURCES = [*sorted((ROOT / "stages" / "compile").glob("*.py")), ROOT / "stages" / "runtime" / "tensorrt.py"]
_ON_CUDA = [ROOT / "stages" / "runtime" / "cuda.py", ROOT / "stages" / "gpu.py"]

_SIGNATURES = """
import json, sys, tensorrt
from functools import reduce
print(json.dumps({name: reduce(getattr, name.split("."), tensorrt).__doc__ for name in json.loads(sys.argv[1])}))
"""


def test_the_real_module_passes_the_code_s_own_look_through_the_list(bindings: Bindings) -> None:
    program = (
        "import json\nfrom stages.compile.api import import_tensorrt, version_of\n"
        "tensorrt = import_tensorrt()\nprint(json.dumps([tensorrt.__version__, version_of(tensorrt)]))"
    )
    version, numbers = bindings.run(program)
    assert version == bindings.version
    assert numbers == [int(part) for part in version.split(".")[:2]]


def test_what_is_missing_is_named(bindings: Bindings) -> None:
    program = (
        "import json, stages.compile.api as api\napi.USED = (*api.USED, 'BuilderFlag.QUANTUM')\n"
        "try:\n    api.import_tensorrt()\nexcept api.RequirementError as error:\n    print(json.dumps(str(error)))"
    )
    assert bindings.run(program) == f"TensorRT {bindings.version} lacks BuilderFlag.QUANTUM, which is needed"


def test_methods_take_what_they_are_given(bindings: Bindings) -> None:
    documented = bindings.run(_SIGNATURES, json.dumps(list(SIGNATURES)))
    for name, given in SIGNATURES.items():
        overloads = [
            _parameters(line) for line in (documented[name] or "").splitlines() if f"{name.split('.')[-1]}(" in line
        ]
        overloads = [parameters for parameters in overloads if parameters is not None]
        assert overloads, f"{name} says nothing of its parameters"
        assert any(_fits(parameters, given) for parameters in overloads), f"{name} takes {overloads}, is given {given}"


def test_the_code_uses_nothing_that_the_list_lacks() -> None:
    """Whatever is reached through the module, and every method of its objects, by name."""
    listed = set(USED) | {name.rsplit(".", 1)[0] for name in USED}
    members = {name.rsplit(".", 1)[-1] for name in USED}
    through_module: set[str] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and (chain := _chain(node)).startswith(("tensorrt.", "self._tensorrt.")):
                through_module.add(chain.removeprefix("self._").removeprefix("tensorrt."))
    assert through_module - {"__version__", "ILogger.Severity"} <= listed
    used = set(
        re.findall(r"(?:config|builder|parser|engine|context|profile|made|inspector|error|runtime)\.(\w+)\(", _text())
    )
    used |= set(re.findall(r"(?:flags|levels)\.([A-Z_0-9]+)", _text()))
    assert used - _OURS <= members, sorted(used - _OURS - members)


_OWN_CLASSES = """
import json, threading, tensorrt
from stages.compile.builder import _monitor, begin, logger
from stages.errors import RequirementError
from stages.runtime.tensorrt import _allocator

class Heard:
    def __init__(self): self.updates = []
    def update(self, note, done=None, total=None):
        if done == 3: raise OSError("nobody listens")
        self.updates.append([note, done, total])

told, heard, base = {}, Heard(), tensorrt.IProgressMonitor
log = logger(tensorrt)
log.log(tensorrt.ILogger.Severity.WARNING, "a hint")
told["warnings"] = list(log.warnings)
log.log(tensorrt.ILogger.Severity.INTERNAL_ERROR, "a fault")
told["said"] = log.said()
monitor = _monitor(tensorrt, heard, threading.Event())
# Through the C++ class, as TensorRT calls it.
base.phase_start(monitor, "Building", None, 3)
base.phase_start(monitor, "inner", "Building", 9)
told["goes on"] = [base.step_complete(monitor, "inner", 0)]
told["goes on"] += [base.step_complete(monitor, "Building", step) for step in range(3)]
base.phase_finish(monitor, "Building")
told["updates"], told["failure"] = heard.updates, repr(monitor.failure)
told["allocates"] = isinstance(_allocator(tensorrt, None), tensorrt.IOutputAllocator)
for kind in (tensorrt.Builder, tensorrt.Runtime):
    try:
        begin(tensorrt, kind, log)
    except RequirementError as error:
        told[kind.__name__] = str(error)
print(json.dumps(told))
"""


def test_our_classes_work_as_the_real_ones_are_called(bindings: Bindings) -> None:
    told = bindings.run(_OWN_CLASSES)
    assert (told["warnings"], told["said"]) == (["a hint"], "a fault")
    assert told["updates"] == [["Building", 1, 3], ["Building", 2, 3]]
    assert told["goes on"] == [True, True, True, False], "what fails in a callback ends the build"
    assert told["failure"] == "OSError('nobody listens')"
    assert told["allocates"]
    for kind in ("Builder", "Runtime"):  # the stubs give none, as TensorRT does where it finds no driver
        assert told[kind].startswith(f"TensorRT {bindings.version} cannot begin; is the driver new enough")


_CUDA = """
import json, sys
from cuda.bindings import runtime
from stages.errors import RequirementError
from stages.runtime.cuda import Device
told = {"signatures": {name: getattr(runtime, name).__doc__ for name in json.loads(sys.argv[1])}}
told["enums"] = [int(runtime.cudaMemcpyKind.cudaMemcpyHostToDevice), int(runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost),
                 int(runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal), int(runtime.cudaStream_t(7))]
try:
    Device()
except RequirementError as error:
    told["without a driver"] = str(error)
print(json.dumps(told))
"""


def test_cuda_s_functions_take_what_they_are_given(cuda_bindings: Bindings) -> None:
    """Those that the stand-in has, and it has all that the code calls."""
    functions = stand_in_cuda.functions()
    used = set(re.findall(r"\b(cuda[A-Z]\w+)", "\n".join(source.read_text() for source in _ON_CUDA)))
    enums = {"cudaError_t", "cudaSuccess", "cudaMemcpyKind", "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"}
    enums |= {"cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal"}
    assert used - enums == functions.keys()
    told = cuda_bindings.run(_CUDA, json.dumps(sorted(functions)))
    for name, parameters in functions.items():
        [real] = re.findall(rf"^{name}\((.*)\)", told["signatures"][name])
        assert tuple(_name(part) for part in real.split(", ") if part) == parameters, (name, real)
    assert told["enums"] == [1, 2, 1, 7]
    if not gpus():
        assert told["without a driver"].startswith(
            "this machine has no CUDA device that can be used: cudaStreamCreate:"
        )


def _name(parameter: str) -> str:
    """Of a parameter as Cython writes it: `size_t count`, `kind: cudaMemcpyKind`, `char *pciBusId`, `stream`."""
    return parameter.split(":")[0].split()[-1].lstrip("*")


def test_what_tensorrt_11_took_away_is_not_used() -> None:
    for word in ("EXPLICIT_BATCH", "int8_calibrator", "BuilderFlag.FP16", "set_output_type", "dynamic_range"):
        assert word not in _text()


_OURS = {"items", "get", "call", "is_file", "with_name"}


def _text() -> str:
    return "\n".join(source.read_text() for source in SOURCES)


def _chain(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_chain(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _parameters(line: str) -> list[tuple[str, bool]] | None:
    """(name, has a default) of the parameters behind `self` in a line as pybind11 writes it."""
    found = re.search(r"\w+\((.*)\) ->", line)
    if found is None:
        return None
    flat = found[1]
    while "[" in flat:
        flat = re.sub(r"\[[^\[\]]*\]", "", flat)
    parameters = [part.strip() for part in flat.split(",") if part.strip()]
    return [(part.split(":")[0].strip(), "=" in part) for part in parameters if not part.startswith("self:")]


def _fits(parameters: list[tuple[str, bool]], given: tuple[str, ...]) -> bool:
    names = [name for name, _ in parameters]
    return tuple(names[: len(given)]) == given and all(default for _, default in parameters[len(given) :])


@pytest.mark.parametrize("line", ["f(self: A, input: str, shape: list[int] = <x: 0>) -> bool"])
def test_a_signature_is_read(line: str) -> None:
    assert _parameters(line) == [("input", False), ("shape", True)]
