"""Forms that other tools make, for `benchmarks/quantization.py`: each is called directly, in a process of its own.

    python benchmarks/peers.py TOOL GRAPH SAMPLES OUT

writes `model.onnx` or `model.xml` into OUT. SAMPLES is a folder of calibration samples, `transformer` or `convolutions`
the kind of model. NNCF imports torch and OpenVINO reports its use unless told otherwise; both are silenced here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from calibration.samples import Samples

os.environ["NNCF_CI"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

TOOLS = (
    "nncf", "nncf-weights-int8", "nncf-weights-int4", "ort-static", "ort-dynamic", "ort-dynamic-per-tensor", "ort-int4"
)  # fmt: skip


def nncf_quantised(graph: Path, samples: Samples, transformer: bool, out: Path) -> None:
    """Post-training quantisation with NNCF's defaults for the kind of model."""
    import nncf
    import openvino

    data = nncf.Dataset([samples.batch([index]) for index in range(len(samples))])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    model = openvino.Core().read_model(graph)
    openvino.save_model(
        nncf.quantize(model, data, model_type=kind, subset_size=len(samples)), out / "model.xml", compress_to_fp16=False
    )


def nncf_weights(graph: Path, bits: int, out: Path) -> None:
    """Weights only, with NNCF's defaults: per channel in 8 bits, blocks of 32 in 4."""
    import nncf
    import openvino

    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if bits == 4:
        options = {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": 32, "ratio": 1.0}
    model = nncf.compress_weights(openvino.Core().read_model(graph), **options)
    openvino.save_model(model, out / "model.xml", compress_to_fp16=False)


def ort_static(graph: Path, samples: Samples, out: Path) -> None:
    """ONNX Runtime's `quantize_static` as its documentation shows it: QDQ, per channel, MinMax."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = (samples.batch([index]) for index in range(len(samples)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    quant_pre_process(graph, out / "prepared.onnx", skip_symbolic_shape=True)
    quantize_static(
        out / "prepared.onnx",
        out / "model.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )
    (out / "prepared.onnx").unlink()


def ort_dynamic(graph: Path, per_channel: bool, out: Path) -> None:
    """ONNX Runtime's `quantize_dynamic`. Per tensor is its default, and what Olive's pass of that name asks for."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, out / "model.onnx", per_channel=per_channel, weight_type=QuantType.QInt8)


def ort_int4(graph: Path, out: Path) -> None:
    """ONNX Runtime's `MatMulNBitsQuantizer`: round to nearest, blocks of 32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
    quantiser = MatMulNBitsQuantizer(onnx.load(graph), algo_config=config)
    quantiser.process()
    quantiser.model.save_model_to_file(str(out / "model.onnx"))


def main() -> None:
    tool, graph, folder, kind, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    samples = Samples.load(folder)
    if tool == "nncf":
        nncf_quantised(graph, samples, kind == "transformer", out)
    elif tool.startswith("nncf-weights"):
        nncf_weights(graph, int(tool[-1]), out)
    elif tool == "ort-static":
        ort_static(graph, samples, out)
    elif tool.startswith("ort-dynamic"):
        ort_dynamic(graph, tool == "ort-dynamic", out)
    elif tool == "ort-int4":
        ort_int4(graph, out)
    else:
        sys.exit(f"there is no tool {tool!r}; there are {', '.join(TOOLS)}")


if __name__ == "__main__":
    main()
