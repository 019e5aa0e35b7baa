"""A real Chromium without a window, driven over its DevTools protocol by way of two pipes.

https://chromedevtools.github.io/devtools-protocol/ : JSON messages, each ended by a zero byte, on the browser's file
descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Browser", "chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_S = 180.0
_NO_ASSISTANT = """
for (const key of ["mlflow.assistant.panelOpen", "mlflow.assistant.fab.autoOpenedOnFirstLoad"]) {
  for (const name of [key, key + "_v1", key + ".v1"])
    localStorage.setItem(name, key.endsWith("Open") ? "false" : "true");
}
"""
"""MLflow opens a panel over a quarter of the window when it is first seen."""


def chromium() -> str | None:
    """The browser that is installed; null if there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of one browser, with a profile of its own. `with Browser(...) as browser`."""

    def __init__(self, executable: str, width: int = 1500, height: int = 1000) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        command = [
            executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--disable-component-update",
            f"--window-size={width},{height}", f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe",
            "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(from_us)
        os.close(to_us)
        self._numbers = itertools.count(1)
        self._buffer = b""
        target = self._ask("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
        self.ask("Page.enable")
        self.ask("Page.addScriptToEvaluateOnNewDocument", {"source": _NO_ASSISTANT})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", size)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def open(self, url: str) -> None:
        """Go to an address in a page that was never there before: a mere change behind `#` loads nothing."""
        self.ask("Page.navigate", {"url": "about:blank"})
        self.ask("Page.navigate", {"url": url})

    def text(self) -> str:
        """What a person can read on the page, also in its drawings."""
        drawn = "[...document.querySelectorAll('svg text')].map(each => each.textContent)"
        return str(self.run(f"[document.body ? document.body.innerText : '', ...{drawn}].join('\\n')"))

    def until(self, *words: str | re.Pattern[str], script: str | None = None) -> str:
        """Wait until the page says all of `words`, and return what it says. A `script` gives other text to look at."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            said = self.text() if script is None else str(self.run(script))
            missing = [
                word for word in words
                if (word not in said if isinstance(word, str) else word.search(said) is None)
            ]  # fmt: skip
            if not missing:
                return said
            assert time.monotonic() < deadline, f"the page never said {missing}; it says:\n{said[:3000]}"
            time.sleep(0.3)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """The page as it is seen, as a PNG file."""
        time.sleep(1.5)  # drawings fade in
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", {"format": "png"})["data"]))

    def ask(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._ask(method, parameters or {}, self._session)

    def _ask(self, method: str, parameters: dict[str, Any], session: str | None) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                assert selector.select(max(0.0, deadline - time.monotonic())), "the browser does not answer"
                part = os.read(self._from, 1 << 20)
                assert part, "the browser has ended"
                self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))
