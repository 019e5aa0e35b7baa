"""`optimize doctor` tells which runtime there is, what it computes in on this processor, and what it would run."""

from __future__ import annotations

import re
import sys

import pytest
from click.testing import CliRunner
from workplace import Workplace

from pipeline.cli.doctor import doctor
from stages.host import versions
from stages.runtime.openvino import capabilities


def test_the_runtimes_are_told_with_their_variants(workplace: Workplace) -> None:
    said = workplace.optimize("doctor").out
    installed = versions(["onnxruntime", "openvino"])
    assert re.search(rf"onnxruntime +{installed['onnxruntime']}, .*CPUExecutionProvider\n +runs fp32, ", said)
    computes = ", ".join(capabilities())
    assert re.search(rf"openvino +{installed['openvino']}, on this processor in {computes}\n +runs fp32-openvino", said)
    [openvino] = re.findall(r"runs (fp32-openvino.*)", said)
    assert "bf16-openvino" in openvino.split(", ") and "fp16" not in openvino


def test_a_missing_runtime_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    said = CliRunner().invoke(doctor).output
    assert re.search(r"openvino +openvino is not installed: `pip install openvino`\n +runs fp32-openvino", said)
