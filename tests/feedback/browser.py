"""A real Chromium without a window, driven over a pipe (DevTools protocol) as a person with a keyboard would.

Scripts are switched off in every page, so what is known of a page is its accessibility tree: what a screen reader has.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

WAIT_S = 30.0
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


def installed() -> str | None:
    """The path of a Chromium: HEADGATE_CHROMIUM, else one of the usual names; None where there is none."""
    names = (os.environ.get("HEADGATE_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Node(NamedTuple):
    """One element as assistive technology has it."""

    role: str
    name: str
    focused: bool
    element: int


class Browser:
    """One browser with one page. `requests` are the addresses of everything that the page asked for."""

    def __init__(self, program: str, scratch: Path) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
        flags += [f"--user-data-dir={scratch / 'profile'}", "--remote-debugging-pipe", "about:blank"]
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        # In the browser the pipe has the numbers 3 and 4; the originals must not be in the way.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (commands, answers)]
        os.close(commands)
        os.close(answers)
        log = os.open(scratch / "browser.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        places = [(high[0], 3), (high[1], 4), (log, 1), (log, 2)]
        actions = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in places]
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch)}
        self.pid = os.posix_spawn(program, [program, *flags], environment, file_actions=actions, setpgroup=0)
        for end in (*high, log):
            os.close(end)
        self._buffer = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self._session = ""
        target = next(each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "DOM", "Accessibility"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setScriptExecutionDisabled", value=True)

    def open(self, url: str) -> None:
        """Go to an address and wait until the page is there."""
        self._call("Page.navigate", url=url)
        self._await("Page.loadEventFired")

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys of KEYS one after another."""
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            code = {"windowsVirtualKeyCode": KEYS[key], "key": key, "code": "Space" if key == " " else key}
            held = {"modifiers": 8} if shift else {}
            self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **code, **held)
            self._call("Input.dispatchKeyEvent", type="keyUp", **code, **held)

    def submit(self, key: str = "Enter") -> None:
        """Press a key that leads to another page, and wait for that."""
        self._events.clear()
        self.press(key)
        self._await("Page.loadEventFired")

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        for character in text:
            self._call("Input.dispatchKeyEvent", type="char", text=character)

    def nodes(self) -> list[Node]:
        """What the page is, in reading order, without what is ignored."""
        found = []
        for node in self._call("Accessibility.getFullAXTree")["nodes"]:
            if not node.get("ignored"):
                facts = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
                name = str(node.get("name", {}).get("value", ""))
                role = str(node["role"]["value"])
                found.append(Node(role, name, bool(facts.get("focused")), node.get("backendDOMNodeId", 0)))
        return found

    def all(self, role: str) -> list[Node]:
        """The elements of a role."""
        return [node for node in self.nodes() if node.role == role]

    def text(self) -> str:
        """Everything that is read out."""
        return " ".join(node.name for node in self.nodes() if node.role == "StaticText")

    def focused(self) -> tuple[str, str] | None:
        """Role and name of what has the focus, None for the page itself."""
        found = [(node.role, node.name) for node in self.nodes() if node.focused and node.role != "RootWebArea"]
        return found[0] if found else None

    def size(self, node: Node) -> tuple[float, float]:
        """Width and height of an element in CSS pixels."""
        model = self._call("DOM.getBoxModel", backendNodeId=node.element)["model"]
        return model["width"], model["height"]

    def set_screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the screen, and which colours its owner prefers."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)

    def content_width(self) -> float:
        """How wide the page is, in CSS pixels."""
        return float(self._call("Page.getLayoutMetrics")["cssContentSize"]["width"])

    def screenshot(self) -> bytes:
        """What it looks like, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser and all of its processes."""
        os.close(self._out)
        deadline = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)
        os.close(self._in)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                result = reply["result"]
                assert isinstance(result, dict)
                return result

    def _await(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._read()
        self._events.clear()

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        assert isinstance(message, dict)
        if "method" in message:
            self._events.append(message)
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        return message
