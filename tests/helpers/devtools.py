"""A Chromium that is told what to do, by Chrome's DevTools protocol through two pipes."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers import chromium

KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


class Tab:
    """A page in a window, as a user has it: with a size, a colour scheme and a keyboard."""

    def __init__(self, commands: int, answers: int) -> None:
        """Take the two ends of the pipes, and open an empty page."""
        self._commands, self._answers, self._rest = commands, answers, b""
        self._count, self._session = 0, None
        self._heard: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Accessibility", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol answers."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._heard.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        parts = [self._rest]
        while b"\0" not in parts[-1]:
            parts.append(os.read(self._answers, 1 << 20))
            assert parts[-1], "Chromium has ended"
        message, _, self._rest = b"".join(parts).partition(b"\0")
        return json.loads(message)

    def show(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a page into a window of this size, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[feature, still])
        self._heard.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._heard):
            self._heard.append(self._next())
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which may be a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, as a user does."""
        code = KEYS.get(key) or (ord(key.upper()) if key.isalnum() else 0)
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        about = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def accessible(self) -> list[dict[str, Any]]:
        """What a screen reader is given: the tree of the page's nodes, as a list."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


@contextmanager
def tab(home: Path) -> Iterator[Tab]:
    """A tab of a Chromium of its own.

    Args:
        home: An empty folder for what Chromium writes.
    """
    executable, environment = chromium.program()
    (to_read, commands), (answers, to_write) = os.pipe(), os.pipe()
    options = [
        *("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
        *("--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe"),
        *("--force-renderer-accessibility", f"--user-data-dir={home / 'profile'}"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    # The program takes what is asked for at 3, and answers at 4.
    shell = f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"'
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, executable, *options],
            env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
            pass_fds=(to_read, to_write),
            stdout=log,
            stderr=log,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            yield Tab(commands, answers)
        finally:
            process.terminate()
            process.wait(30)
            os.close(commands)
            os.close(answers)
