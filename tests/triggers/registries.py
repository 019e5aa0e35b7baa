"""Registered models for tests, and a real `mlflow server` that can be stopped and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from small_models import save_onnx

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
"""What Fernet takes: 32 bytes in URL-safe Base64."""


class MlflowServer:
    """A server with one worker over SQLite, on a port of its own that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Bound, but never listening: nobody else gets the port while the server is away, and the server does, since it
        # too says SO_REUSEADDR.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, key: str = KEY) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port),
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": key,
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        }
        log = self.folder / "log"
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        while True:
            assert self._process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return
            time.sleep(0.3)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop it, and let go of its port."""
        self.stop()
        self._place.close()


def register(client: Any, name: str, folder: Path, *, width: int = 600, flavors: Any = None) -> int:
    """Register a small ONNX model as the next version of `name`: as MLflow's onnx flavour lays it out."""
    files = folder / f"{name}-{time.monotonic_ns()}"
    save_onnx(files / "model.onnx", width=width)
    flavors = flavors or {"onnx": {"data": "model.onnx", "onnx_version": "1.18.0"}}
    (files / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    return register_files(client, name, files)


def register_files(client: Any, name: str, files: Path) -> int:
    import mlflow
    from mlflow.exceptions import MlflowException

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        experiment = client.get_experiment_by_name("sources")
        identity = client.create_experiment("sources") if experiment is None else experiment.experiment_id
        model = client.create_logged_model(identity, name=name)
        client.log_model_artifacts(model.model_id, str(files))
        client.finalize_logged_model(model.model_id, "READY")
        with contextlib.suppress(MlflowException):  # it is there
            client.create_registered_model(name)
        return int(client.create_model_version(name, f"models:/{model.model_id}", model_id=model.model_id).version)
    finally:
        mlflow.set_tracking_uri(before)


def versions(client: Any, name: str) -> list[Any]:
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda entry: int(entry.version))
