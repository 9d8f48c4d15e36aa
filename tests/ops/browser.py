"""A headless Chromium, driven over its DevTools protocol: no more of it than these tests need."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from .programs import needed

START_S: Final = 30.0
ANSWER_S: Final = 60.0  # Chromium draws in software; what the page must do in time, the tests say


class Page:
    """One tab. `complaints` are what its console and the browser had to say against it."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.dialogs = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Do one command; what happens meanwhile is taken note of."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = json.loads(self._connection.recv(timeout=max(0.1, deadline - time.monotonic())))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result = message["result"]
                assert isinstance(result, dict)
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        facts = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(facts["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if facts["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(facts["args"]))
            case "Log.entryAdded" if facts["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(facts["entry"]))
            case "Network.requestWillBeSent":
                self.requested.append(facts["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs += 1

    def open(self, url: str) -> None:
        """Go there; return when the document is read."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState !== 'loading'", ANSWER_S)

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Be a screen of this size, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 15.0) -> float:
        """Return the seconds it took until `expression` was true."""
        began = time.monotonic()
        while not self.run(expression):
            assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s: {expression}"
            time.sleep(0.03)
        return time.monotonic() - began

    def press(self, key: str, *, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def photograph(self, path: Path) -> None:
        """Write the whole page to `path`, a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """Start Chromium with a profile in `directory`; yield its one tab."""
    profile = directory / "profile"
    with (directory / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [
                needed("chromium", "chromium"),
                "--headless=new",
                "--no-sandbox",  # root in a container has no other way; the page is our own
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        told = profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while not told.exists() or len(told.read_text().split()) < 2:
            assert process.poll() is None, (directory / "chromium.log").read_text()
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        port = told.read_text().split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            tabs = json.load(answer)
        (tab,) = [tab for tab in tabs if tab["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Page(connection)
    finally:
        process.kill()
        process.wait()
