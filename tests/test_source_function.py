"""Models made by a Python function and `torch.export` programs: how they become files, and which are not read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.artifact import Artifact
from stages.convert import convert
from stages.errors import InputError, StageError
from stages.source import SourceOptions, fetch, locate

MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)
    def forward(self, x, lengths):
        return {"score": self.linear(x).mean(dim=1), "double": lengths * 2}

class OnlyFour(torch.nn.Module):
    def forward(self, x):
        return x.reshape(4, 2)

def net():
    inputs = {"x": torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), "lengths": torch.tensor([5, 3])}
    return Net(), inputs, {"x": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}

def simple():
    return torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), (torch.ones(2, 4),)

def one_sample():
    return torch.nn.Linear(4, 2), (torch.ones(1, 4),)

def bare():
    return torch.nn.Linear(4, 2)

def four():
    return OnlyFour(), (torch.ones(4, 2),)

def strange_axis():
    return torch.nn.Linear(4, 2), (torch.ones(2, 4),), {"y": {0: "batch"}}

constant = 3
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Artifact]:
    """Fetches a function of a module that lies in the current folder."""
    (tmp_path / "zoo_of_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def bring(function: str, folder: str = "out") -> Artifact:
        (tmp_path / folder).mkdir()
        return fetch(options=SourceOptions(reference=f"zoo_of_nets:{function}"), out=tmp_path / folder)

    return bring


def converted(source: Artifact, out: Path) -> Artifact:
    out.mkdir()
    return convert(source=source, out=out)


def test_a_function_must_be_fetched() -> None:
    assert locate("zoo_of_nets:net") is None


def test_a_function_gives_a_model_with_its_named_axes(zoo: Callable[[str], Artifact], tmp_path: Path) -> None:
    source = zoo("net")
    assert dict(source.metadata) == {
        "type": "exported",
        "file": "model.pt2",
        "task": "generic",
        "axes": {"x": {"0": "batch", "1": "time"}, "lengths": {"0": "batch"}},
    }
    model = converted(source, tmp_path / "model")
    inputs = {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in model.metadata["signature"]["inputs"]}
    outputs = {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in model.metadata["signature"]["outputs"]}
    assert inputs == {"x": ("float32", ["batch", "time", 4]), "lengths": ("int64", ["batch"])}
    assert outputs == {"score": ("float32", ["batch", 3]), "double": ("int64", ["batch"])}


def test_without_axes_the_first_of_every_input_is_the_batch(zoo: Callable[[str], Artifact], tmp_path: Path) -> None:
    model = converted(zoo("simple"), tmp_path / "model")
    assert model.metadata["signature"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 4]}]
    assert model.metadata["signature"]["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 2]}]


def test_the_same_function_gives_the_same_digest(zoo: Callable[..., Artifact]) -> None:
    first, second = zoo("net", "first"), zoo("net", "second")
    assert first.digest == second.digest
    with zipfile.ZipFile(first.path / "model.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"zoo_of_nets.py" not in content, "where the code lies is no part of the model"


def test_the_program_file_can_be_given_itself(zoo: Callable[[str], Artifact], tmp_path: Path) -> None:
    source = locate(str(zoo("net").path / "model.pt2"), task="generic")
    assert source is not None and source.metadata["type"] == "exported"
    model = converted(source, tmp_path / "model")
    shapes = {tensor["name"]: tensor["shape"] for tensor in model.metadata["signature"]["inputs"]}
    assert shapes == {"x": ["batch", "x_1", 4], "lengths": ["batch"]}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "has no 'nothing'"),
        ("constant", "no function but a int"),
        ("bare", r"gives a Linear, .*must return \(module, example inputs\)"),
        ("one_sample", r"axis 0 \(batch\) of the example input has size 1"),
        ("strange_axis", "dynamic axes of 'y', which is none of the inputs input"),
    ],
)
def test_a_function_that_does_not_fit_is_told_why(zoo: Callable[[str], Artifact], function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo(function)


def test_an_unknown_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no module 'no_such_zoo'"):
        fetch(options=SourceOptions(reference="no_such_zoo.nets:net"), out=tmp_path)


def test_a_model_whose_batch_cannot_vary_is_refused(zoo: Callable[[str], Artifact]) -> None:
    with pytest.raises(StageError, match=r"cannot trace zoo_of_nets:four with dynamic axes x {0: 'batch'}"):
        zoo("four")


def test_a_pickle_that_was_allowed_is_a_source(tmp_path: Path) -> None:
    import torch

    torch.save((torch.nn.Linear(4, 2), (torch.ones(2, 4),)), tmp_path / "net.pt")
    reference = str(tmp_path / "net.pt")
    assert locate(reference, allow_pickle=True) is None
    (tmp_path / "out").mkdir()
    source = fetch(options=SourceOptions(reference=reference, allow_pickle=True), out=tmp_path / "out")
    assert source.metadata["type"] == "exported"


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def test_a_truncated_program_is_refused(zoo: Callable[[str], Artifact]) -> None:
    path = zoo("simple").path / "model.pt2"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="is not a whole torch"):
        locate(str(path))


def test_a_program_with_pickled_weights_needs_the_flag(zoo: Callable[[str], Artifact]) -> None:
    path = rewritten(
        zoo("simple").path / "model.pt2",
        lambda _, content: content.replace(b'"use_pickle": false', b'"use_pickle": true'),
    )
    with pytest.raises(InputError, match=r"weights_config\.json\) is a pickle.*--allow-pickle"):
        locate(str(path))
    assert locate(str(path), allow_pickle=True) is not None


def test_code_in_a_programs_shapes_is_not_run(zoo: Callable[[str], Artifact]) -> None:
    code = b"__import__('os').system('true')"
    path = rewritten(
        zoo("simple").path / "model.pt2",
        lambda _, content: content.replace(b"Symbol('s", code + b" or Symbol('s"),
    )
    with pytest.raises(InputError, match="has code in place of a shape expression"):
        locate(str(path))


def test_a_pickle_among_a_programs_example_inputs_is_not_run(zoo: Callable[[str], Artifact], tmp_path: Path) -> None:
    import torch

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = io.BytesIO()
    torch.save(Trap(), trap)
    path = rewritten(
        zoo("simple").path / "model.pt2", lambda name, content: trap.getvalue() if name.endswith(".pt") else content
    )
    source = locate(str(path))
    assert source is not None
    with pytest.raises(InputError, match="--allow-pickle"):
        converted(source, tmp_path / "model")
    assert not (tmp_path / "sprung").exists()
