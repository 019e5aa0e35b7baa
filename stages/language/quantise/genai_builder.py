"""ONNX Runtime GenAI's model builder, in a process of its own.

It is a script: it prints, sets up the root logger, puts its folder among the places that modules come from (with names
like `quantization` and `builders`) and asks git for a revision to stamp the graph with, which is that of whatever
repository Python happens to be installed in. And what it loads is gone from memory with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from stages.errors import InputError, RequirementError, StageError
from stages.progress import Progress

__all__ = ["build_decoder"]

_BUILD = """
import ctypes, json, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: not longer than who waits for it
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
_LAYER = re.compile(r"Reading layer (\d+)")
_LAST_WORDS = 20


def build_decoder(
    checkpoint: Path, out: Path, options: Mapping[str, str], layers: int, progress: Progress, *, trust: bool = False
) -> None:
    """Write the checkpoint of `layers` layers as a decoder in ONNX into `out`: weights in 4 bits, for the CPU, with its
    key-value cache, GenAI's configuration and the tokenizer. `options` are the builder's `--extra_options`.

    `trust`: whether code that comes with the checkpoint may be run. Nothing is fetched.

    Raises `InputError` for an architecture that the builder does not know, `StageError` if it fails otherwise,
    `RequirementError` if it is not installed.
    """
    library = importlib.util.find_spec("onnxruntime_genai")
    if library is None or library.origin is None:
        raise RequirementError("onnxruntime-genai is not installed: `pip install 'optimize-pipeline[llm]'`")
    given = {**options, "hf_token": "false", "hf_remote": str(trust).lower()}
    said: deque[str] = deque(maxlen=_LAST_WORDS)
    with tempfile.TemporaryDirectory() as scratch:
        # Its folder comes first: a module of the user's may have one of those names.
        places = [str(Path(library.origin).with_name("models")), *sys.path]
        command = [sys.executable, "-u", "-P", "-c", _BUILD, json.dumps(places)]
        command += ["--input", str(checkpoint.resolve()), "--output", str(out.resolve()), "--cache_dir", scratch]
        command += ["--precision", "int4", "--execution_provider", "cpu"]
        command += ["--extra_options", *(f"{name}={value}" for name, value in given.items())]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=scratch,
            env={**os.environ, **_environment(scratch)},
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    said.append(line.strip())
                    if found := _LAYER.match(line):
                        progress.update("writing the decoder in ONNX", int(found[1]), layers)
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        last = next((line for line in reversed(said) if line), f"it ended with {process.returncode} and said nothing")
        if "not currently supported" in last:
            raise InputError(f"ONNX Runtime GenAI's builder cannot write {checkpoint} as a decoder: {last}")
        raise StageError(f"ONNX Runtime GenAI's builder failed on {checkpoint}: {last}")


def _environment(scratch: str) -> dict[str, str]:
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": scratch,  # where code of the checkpoint's would be copied to
        "GIT_DIR": os.devnull,  # it then takes the revision that it was released from
    }
