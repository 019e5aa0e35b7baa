"""Every attribute, enum and signature of TensorRT that the code uses exists in the real bindings of 10 and of 11."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from real_bindings import Bindings

from stages.compile.api import SIGNATURES, USED

ROOT = Path(__file__).parent.parent.parent
SOURCES = [*sorted((ROOT / "stages" / "compile").glob("*.py")), ROOT / "stages" / "runtime" / "tensorrt.py"]

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
