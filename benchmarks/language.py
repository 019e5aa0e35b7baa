"""Quantising a language model: what ours costs beside the library called directly, and what each form loses.

    .venv/bin/python benchmarks/language.py [--only cost|quality] [--rounds 3] [--windows 128]

Works on examples/tiny-llama (train it first: `make llama`, or examples/tiny-llama/train.py).

`cost`: GPTQ by GPTQModel as its own documentation calls it, and by our stage, which besides reads the checkpoint,
writes the files beside the weights, holds what came out against what was promised, and loads it again and asks it. In
turns, each in a process of its own, on the same windows of the same text. CPU seconds and memory (largest resident set)
are those of the process.

`quality`: the rise of the perplexity on held-out text, of each form as it was saved and loaded again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.artifact import Artifact
from stages.gate import Limits, judge
from stages.host import host_fingerprint
from stages.language.adopt import AdoptOptions, adopt
from stages.language.check import CheckLanguageOptions, check_language
from stages.language.checkpoint import Checkpoint
from stages.language.prepare import PrepareTextOptions, prepare_text
from stages.language.variants import quantise_checkpoint
from stages.prepare import locate_data
from stages.source import locate
from stages.variants import parse_variant

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "examples" / "tiny-llama" / "build"
LENGTH = 256

FORMS: list[Any] = [
    {"type": "gptq", "group_size": 32, "name": "gptq-groups-of-32"},
    "gptq",
    {"type": "gptq", "act_order": True, "name": "gptq-act-order"},
    "awq",
    "w4a16",
    "int8-w8a8",
    "fp8",
    "int4-onnx",
]

DIRECT = """
import json, os, sys
os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
import numpy, torch
from gptqmodel import GPTQConfig, GPTQModel
checkpoint, windows, out = sys.argv[1:]
tokens = numpy.load(windows)["tokens"]
model = GPTQModel.load(checkpoint, GPTQConfig(bits=4, group_size=128), dtype=torch.float32)
model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()], batch_size=1)
model.save(out)
"""

OURS = """
import sys
from pathlib import Path
from stages.artifact import Artifact
from stages.language.variants import quantise_checkpoint
from stages.variants import parse_variant
model, data, out = map(Path, sys.argv[1:])
quantise_checkpoint(model=Artifact.read(model), options=parse_variant("gptq"), out=out, data=Artifact.read(data))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["cost", "quality"], help="one of the two parts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=128, help="of calibration text, 256 tokens each")
    arguments = parser.parse_args()
    if not (BUILT / "checkpoint" / "config.json").exists():
        sys.exit("train the model first: python examples/tiny-llama/train.py examples/tiny-llama/build")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, calibration = _model(place), _text(place, "calibration", arguments.windows)
        host = host_fingerprint()
        print(
            f"{host['cpu']}, {os.cpu_count()} cores; {Checkpoint.of(model).parameters / 1e6:.1f} million parameters\n"
        )
        if arguments.only != "quality":
            _cost(place, model, calibration, arguments.rounds)
        if arguments.only != "cost":
            _quality(place, model, calibration)


def _model(place: Path) -> Artifact:
    source = locate(str(BUILT / "checkpoint"))
    assert source is not None
    (place / "model").mkdir()
    return adopt(source=source, options=AdoptOptions(), out=place / "model")


def _text(place: Path, role: Any, windows: int | None) -> Artifact:
    data = locate_data(str(BUILT / f"{role}.jsonl"))
    assert data is not None
    (place / role).mkdir()
    options = PrepareTextOptions(role=role, samples=windows, length=LENGTH)
    return prepare_text(model=Artifact.read(place / "model"), data=data, options=options, out=place / role)


def _cost(place: Path, model: Artifact, calibration: Artifact, rounds: int) -> None:
    taken: dict[str, list[tuple[float, float, float]]] = {"GPTQModel, directly": [], "ours": []}
    for number in range(rounds):
        turns = [("GPTQModel, directly", DIRECT), ("ours", OURS)]
        for name, script in turns if number % 2 == 0 else reversed(turns):
            out = place / f"{number}-{name}"
            data = calibration.path / "windows.npz" if script is DIRECT else calibration.path
            out.mkdir()
            taken[name].append(_measured([sys.executable, "-c", script, str(model.path), str(data), str(out)], place))
    size = sum((model.path / name).stat().st_size for name in model.files if name.endswith(".safetensors"))
    limit = 3 * size / 1e6 + 700
    print(f"GPTQ, groups of 128, {rounds} rounds: minimum (median)\n")
    print(f"{'':<22}{'wall s':>16}{'CPU s':>16}{'peak MB':>16}")
    for name, costs in taken.items():
        cells = [f"{min(values):.1f} ({statistics.median(values):.1f})" for values in zip(*costs, strict=True)]
        print(f"{name:<22}" + "".join(f"{cell:>16}" for cell in cells))
    ratios = [
        min(ours) / min(direct)
        for ours, direct in zip(
            zip(*taken["ours"], strict=True), zip(*taken["GPTQModel, directly"], strict=True), strict=True
        )
    ]
    print(f"{'ratio of the minima':<22}" + "".join(f"{ratio:>16.2f}" for ratio in ratios))
    print(f"\nthree times the checkpoint ({size / 1e6:.0f} MB) and 700 MB are {limit:.0f} MB\n")


def _measured(command: list[str], out: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds, and the largest resident set in MB, of a command run in `out` (GPTQModel writes logs)."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=out)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"a process ended with {status}:\n{told.decode(errors='replace')[-3000:]}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def _quality(place: Path, model: Artifact, calibration: Artifact) -> None:
    evaluation = _text(place, "evaluation", None)
    before = _checked(place, "original", model, evaluation, None)
    size = Checkpoint.of(model).weights_bytes(model)
    perplexity = before.metadata["metric"]["value"]
    windows = before.metadata["samples"]
    print(f"perplexity on {windows} windows of {LENGTH} tokens, each overlapping the one before by half\n")
    print(f"{'':<22}{'perplexity':>12}{'rise':>10}{'rise ≤ (95 %)':>16}{'KL nats':>10}{'same top-1':>12}{'MB':>8}")
    print(f"{'original':<22}{perplexity:>12.3f}{'':>10}{'':>16}{'':>10}{'':>12}{size / 1e6:>8.2f}", flush=True)
    for form in FORMS:
        variant = parse_variant(form)
        out = place / variant.name
        out.mkdir()
        made = quantise_checkpoint(
            model=model, options=variant, out=out, **({"data": calibration} if variant.needs_data else {})
        )
        after = _checked(place, variant.name, made, evaluation, before)
        judged = judge(after, before, Limits())
        assert judged.metric is not None
        told = after.metadata["fidelity"]
        print(
            f"{variant.name:<22}{judged.metric.value:>12.3f}{judged.metric.drop:>10.2%}{judged.metric.drop_upper:>16.2%}"
            f"{told['kl']:>10.4f}{told['agreement']:>12.4f}{Checkpoint.of(made).weights_bytes(made) / 1e6:>8.2f}",
            flush=True,
        )


def _checked(place: Path, name: str, model: Artifact, data: Artifact, reference: Artifact | None) -> Artifact:
    out = place / f"check {name}"
    out.mkdir()
    return check_language(model=model, data=data, options=CheckLanguageOptions(), out=out, reference=reference)


if __name__ == "__main__":
    main()
