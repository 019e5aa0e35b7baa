"""Our variants beside what other tools make of the same graphs, all measured in one interleaved run.

    .venv/bin/python benchmarks/quantization.py [minilm] [digits] [auto] [--seconds 60] [--json FILE]

Every form is made in a process of its own, from the same converted graph and the same calibration samples; the column
`made` is the CPU time of that. Speed is measured by the stage `profile`: a process for each form, in turns of random
order on the same inputs, the others stopped meanwhile; the speed-up over ONNX Runtime's FP32 is paired turn by turn,
with its 95 % interval. Fidelity is the cosine of each output to that of FP32, over samples that calibration never saw.
Sentences are docstrings of Python's standard library of exactly 64 (batch 1) and 128 tokens (batch 8). `auto` runs
`optimize run --variants auto` on MiniLM and sentences of 128 tokens, and shows what it publishes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration import builtin_text
from calibration.samples import Samples
from stages.artifact import Artifact
from stages.calibrate import CalibrateOptions, calibrate
from stages.check.outputs import OutputSplitter
from stages.convert import convert
from stages.host import host_fingerprint
from stages.model import ASSETS, Model
from stages.prepare import PrepareOptions, locate_data, prepare
from stages.profile import ProfileOptions, profile
from stages.progress import SILENT
from stages.runtime import RuntimeOptions, open_session
from stages.source import locate

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).with_name("peers.py")
BASELINE = "ONNX Runtime FP32"

OURS: dict[str, list[Any]] = {
    "minilm": [
        "bf16", "fp32-openvino", "int8-dynamic", "int8-static", "int8-static-openvino", "int8-weight-only",
        "int8-weight-only-openvino", "int4", {"type": "int4", "block_size": 128, "name": "int4-block-128"},
        {"type": "int4", "method": "rtn", "name": "int4-rtn"},
    ],
    "digits": ["bf16", "fp32-openvino", "int8-dynamic", "int8-static", "int8-static-openvino"],
}  # fmt: skip
THEIRS = {
    "minilm": {
        "NNCF, OpenVINO INT8": "nncf",
        "NNCF, weights INT8": "nncf-weights-int8",
        "NNCF, weights INT4": "nncf-weights-int4",
        "ORT quantize_static": "ort-static",
        "ORT quantize_dynamic": "ort-dynamic",
        "… per tensor (as Olive)": "ort-dynamic-per-tensor",
        "ORT MatMulNBits RTN": "ort-int4",
    },
    "digits": {
        "NNCF, OpenVINO INT8": "nncf",
        "ORT quantize_static": "ort-static",
        "ORT quantize_dynamic": "ort-dynamic",
    },
}

MAKE = """
import json, sys
from pathlib import Path
from stages.artifact import Artifact
from stages.progress import SILENT
from stages.variants import parse_variant, quantise
model, statistics, spec, out = sys.argv[1:]
config = parse_variant(json.loads(spec))
observed = Artifact.read(Path(statistics)) if config.needs_data else None
quantise(Artifact.read(Path(model)), config, Path(out), SILENT, observed)
"""


@dataclass
class Row:
    """One form: milliseconds and speed-up by batch size, cosine to FP32 (mean and least), accuracy where known."""

    name: str
    ours: bool
    size_bytes: int
    made_cpu_s: float | None
    cosine: float
    least_cosine: float
    accuracy: float | None
    ms: dict[str, float] = field(default_factory=dict)
    speedup: dict[str, tuple[float, float | None, float | None]] = field(default_factory=dict)


class Workshop:
    """A folder in which one model, its data and all its forms are made."""

    def __init__(
        self, folder: Path, model: Artifact, calibration: Path, max_length: int | None, only: list[str]
    ) -> None:
        self.folder = folder
        self.model = model
        self.only = only
        given = locate_data(str(calibration))
        options = PrepareOptions(role="calibration", max_length=max_length, samples=256)
        self.calibration = prepare(model, options, self.new("calibration"), SILENT, given)
        before = _cpu()
        self.statistics = calibrate(model, self.calibration, CalibrateOptions(gram=True), self.new("statistics"))
        self.calibrated_cpu_s = _cpu() - before
        self.forms: dict[str, Artifact] = {BASELINE: model}
        self.made: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def new(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def wanted(self, name: str) -> bool:
        return not self.only or any(part in name for part in self.only)

    def ours(self, spec: str | dict[str, Any]) -> None:
        name = spec if isinstance(spec, str) else spec["name"]
        out = self.new(f"ours {name}")
        arguments = [str(self.model.path), str(self.statistics.path), json.dumps(spec), str(out)]
        if self._run(name, [sys.executable, "-c", MAKE, *arguments]):
            self.forms[name] = Artifact.read(out)

    def theirs(self, name: str, tool: str, kind: str) -> None:
        out = self.new(f"theirs {tool}")
        graph = Model.of(self.model).path(self.model)
        if self._run(name, [sys.executable, str(PEERS), tool, str(graph), str(self.calibration.path), kind, str(out)]):
            about = Model.of(self.model).model_dump(mode="json")
            if (out / "model.xml").is_file():
                about |= {"file": "model.xml", "runtime": "openvino", "arithmetic": "bf16"}
            self.forms[name] = Artifact.write(out, "model", about | {"precision": "int8"})

    def _run(self, name: str, command: list[str]) -> bool:
        print(f"  making {name}", file=sys.stderr, flush=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.made[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if done.returncode != 0:
            self.failed[name] = (done.stderr.strip() or "no reason given").splitlines()[-1]
        return done.returncode == 0


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _checkpoint(data: Path) -> Path:
    """MiniLM's directory, with the data of the example beside it."""
    build = [sys.executable, str(ROOT / "examples/minilm/data.py"), str(data)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return data / "checkpoint"


def minilm(folder: Path, seconds: float, only: list[str]) -> tuple[Workshop, list[Row]]:
    data = folder / "data"
    source = locate(str(_checkpoint(data)))
    assert source is not None
    (folder / "converted").mkdir()
    shop = Workshop(folder, convert(source=source, out=folder / "converted"), data / "calibration.jsonl", 128, only)
    _make_all(shop, "minilm", "transformer")
    short, long = _sentences(shop, 64), _sentences(shop, 128)
    rows = _fidelity(shop, long, None)
    _speed(shop, rows, "1x64", short, 1, seconds)
    _speed(shop, rows, "8x128", long, 8, seconds)
    return shop, rows


def digits(folder: Path, seconds: float, only: list[str]) -> tuple[Workshop, list[Row]]:
    data = folder / "data"
    subprocess.run([sys.executable, str(ROOT / "examples/digits/train.py"), str(data)], check=True, capture_output=True)
    source = locate(str(data / "digits.pt2"), task="image-classification")
    assert source is not None
    (folder / "converted").mkdir()
    shop = Workshop(folder, convert(source=source, out=folder / "converted"), data / "calibration.npz", None, only)
    _make_all(shop, "digits", "convolutions")
    with np.load(data / "evaluation.npz") as arrays:
        samples, labels = Samples({"image": list(arrays["image"])}), arrays["labels"]
    rows = _fidelity(shop, samples, labels)
    _speed(shop, rows, "1", samples, 1, seconds)
    _speed(shop, rows, "32", samples, 32, seconds)
    return shop, rows


def _make_all(shop: Workshop, name: str, kind: str) -> None:
    for spec in OURS[name]:
        if shop.wanted(spec if isinstance(spec, str) else spec["name"]):
            shop.ours(spec)
    for peer, tool in THEIRS[name].items():
        if shop.wanted(peer):
            shop.theirs(peer, tool, kind)


def _long_texts(file: Path, count: int, part: Literal["evaluation", "calibration"]) -> Path:
    """Write docstrings strung together, so that nearly all have more than 128 tokens."""
    texts = builtin_text(6 * count, part=part)
    rows = [json.dumps({"text": " ".join(texts[start : start + 6])}) for start in range(0, len(texts), 6)]
    file.write_text("\n".join(rows))
    return file


def _sentences(shop: Workshop, tokens: int, count: int = 64) -> Samples:
    """Texts cut to exactly so many tokens."""
    file = _long_texts(shop.new(f"texts of {tokens}") / "texts.jsonl", count, "evaluation")
    options = PrepareOptions(max_length=tokens)
    data = prepare(shop.model, options, shop.new(f"sentences of {tokens}"), SILENT, locate_data(str(file)))
    samples = Samples.load(data.path)
    return samples.take(np.flatnonzero(samples.lengths() == tokens).tolist())


def _fidelity(shop: Workshop, samples: Samples, labels: Any) -> list[Row]:
    splitter = OutputSplitter(Model.of(shop.model).signature, samples)
    answers: dict[str, list[Any]] = {}
    for name, form in shop.forms.items():
        with open_session(form, RuntimeOptions(spinning=False)) as session:
            rows: list[Any] = [None] * len(samples)
            for indices, batch in samples.batches(8):
                for index, answer in splitter.split(indices, session(batch)):
                    rows[index] = next(iter(answer.values())).ravel().astype(np.float64)
        answers[name] = rows
    exact = answers[BASELINE]
    result = []
    for name, rows in answers.items():
        cosines = [
            float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30)) for a, b in zip(rows, exact, strict=True)
        ]
        right = None if labels is None else float(np.mean([row.argmax() for row in rows] == labels))
        form = shop.forms[name]
        size = sum((form.path / file).stat().st_size for file in form.files if not file.startswith(f"{ASSETS}/"))
        ours = name not in THEIRS["minilm"] and name not in THEIRS["digits"] and name != BASELINE
        made = shop.made.get(name)
        result.append(Row(name, ours, size, made, float(np.mean(cosines)), min(cosines), right))
    return result


def _speed(shop: Workshop, rows: list[Row], label: str, samples: Samples, batch: int, seconds: float) -> None:
    print(f"  measuring {label}", file=sys.stderr, flush=True)
    folder = shop.new(f"samples {label}")
    samples.save(folder)
    data = Artifact.write(folder, "dataset", {})
    names = {f"form{number}": row.name for number, row in enumerate(rows)}
    options = ProfileOptions(baseline="form0", batch_sizes=(batch,), budget_s=seconds)
    models = {key: shop.forms[name] for key, name in names.items()}
    measured = profile(data, options, shop.new(f"profile {label}"), SILENT, **models).metadata["variants"]
    for key, row in zip(names, rows, strict=True):
        figures = measured[key]
        if figures["error"] is not None:
            shop.failed[row.name] = figures["error"]
            continue
        row.ms[label] = figures["batches"][str(batch)]["latency_ms"]["p50"]
        ratio = figures["speedups"][str(batch)]
        row.speedup[label] = (ratio["value"], ratio["low"], ratio["high"])


def show(name: str, shop: Workshop, rows: list[Row]) -> None:
    labels = list(rows[0].ms)
    heading = "".join(f"{f'{label} ms':>11}{'speed-up':>20}" for label in labels)
    accurate = rows[0].accuracy is not None
    print(
        f"\n{name}; calibration of {len(Samples.load(shop.calibration.path))} samples {shop.calibrated_cpu_s:.1f} CPU s"
    )
    print(f"{'':<28}{heading}{'cosine':>9}{'least':>8}{'accuracy' if accurate else '':>10}{'size kB':>10}{'made s':>8}")
    for row in rows:
        cells = ""
        for label in labels:
            value, low, high = row.speedup.get(label, (float("nan"), None, None))
            interval = f"{value:.2f}x" + (f" ({low:.2f}-{high:.2f})" if low is not None else "")
            cells += f"{row.ms.get(label, float('nan')):>11.2f}{interval:>20}"
        made = "" if row.made_cpu_s is None else f"{row.made_cpu_s:.1f}"
        right = "" if row.accuracy is None else f"{row.accuracy:.4f}"
        mark = "▸ " if row.ours else "  "
        print(
            f"{mark + row.name:<28}{cells}{row.cosine:>9.5f}{row.least_cosine:>8.4f}{right:>10}"
            f"{row.size_bytes / 1000:>10,.0f}{made:>8}"
        )
    for failed, reason in shop.failed.items():
        print(f"  {failed}: {reason}")


def auto(folder: Path) -> dict[str, Any]:
    """What `variants: auto` comes to on sentences of 128 tokens without labels: the result's document."""
    checkpoint = _checkpoint(folder / "data")
    recipe = {
        "model": str(checkpoint),
        "name": "minilm",
        "evaluation": {"path": str(_long_texts(folder / "evaluation.jsonl", 256, "evaluation")), "max_length": 128},
        "calibration": {"path": str(_long_texts(folder / "calibration.jsonl", 256, "calibration")), "max_length": 128},
        "variants": "auto",
        "search_budget": "6m",
        "profile": {"batch_sizes": [1]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    command = [
        str(Path(sys.executable).with_name("optimize")), "run", "recipe.yaml", "--no-verify", "--json",
        "--store", "store", "--repository", "repository", "--tracking-uri", f"sqlite:///{folder}/mlflow.db",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def show_auto(document: dict[str, Any]) -> None:
    searched = len(document["candidates"])
    print(f"\nauto: {searched} candidates in {document['seconds']:.0f} s; front: {', '.join(document['front'])}")
    for row in document["variants"]:
        if row["latency_ms"] is None:
            continue
        ratio = row["batches"][0]["speedup"]
        mark = "▸ " if row["name"] == document["chosen"] else "  "
        cosine = row["fidelity"].get("cosine", {}).get("value", 1)
        print(
            f"{mark + row['name']:<28}{row['latency_ms']['p50']:>8.2f} ms{ratio['value']:>7.2f}x "
            f"({ratio['low'] or 0:.2f}-{ratio['high'] or 0:.2f}){cosine:>10.5f}"
            f"{row['size_bytes'] / 1000:>10,.0f} kB  {row['verdict']}"
        )


MODELS: dict[str, Callable[[Path, float, list[str]], tuple[Workshop, list[Row]]]] = {"minilm": minilm, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", choices=[*MODELS, "auto", []], default=[*MODELS, "auto"], help="default: all"
    )
    parser.add_argument("--seconds", type=float, default=60, help="for measuring each batch size")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="forms whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    host = host_fingerprint()
    print(f"{host['cpu']}, {host['cores']} cores; medians, paired speed-ups over {BASELINE} with their 95 % interval")
    documents: dict[str, Any] = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            if name == "auto":
                documents[name] = auto(Path(folder))
                show_auto(documents[name])
                continue
            shop, rows = MODELS[name](Path(folder), arguments.seconds, arguments.only)
            show(name, shop, rows)
            documents[name] = {"host": host, "rows": [asdict(row) for row in rows], "failed": shop.failed}
    if arguments.json:
        arguments.json.write_text(json.dumps(documents, indent=1))


if __name__ == "__main__":
    main()
