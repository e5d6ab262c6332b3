"""Chromium without a window, for the tests of pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
NAMES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "ArrowUp": 38, "Backspace": 8}


class Browser:
    """Chromium without a window, spoken to over its debugging pipe (the DevTools protocol)."""

    def __init__(self, profile: Path) -> None:
        theirs, self.out = os.pipe()
        self.into, ours = os.pipe()
        flags = "--headless --remote-debugging-pipe --no-first-run --disable-gpu --disable-dev-shm-usage"
        sandbox = "--no-sandbox" if os.geteuid() == 0 else ""
        command = f'exec "$0" {flags} {sandbox} "--user-data-dir=$1" about:blank 3<&{theirs} 4>&{ours}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), str(profile)], pass_fds=(theirs, ours), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(ours)
        self.downloads = profile.parent / f"{profile.name}-downloads"
        self.number, self.buffer, self.session, self.events = 0, b"", None, []
        self.context: str | None = None

    def fresh(self) -> None:
        """A tab whose storage nobody has used."""
        self.session = None
        if self.context:
            self.call("Target.disposeBrowserContext", browserContextId=self.context)
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.events.clear()
        self.context = self.call("Target.createBrowserContext")["browserContextId"]
        own = {"browserContextId": self.context}
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), **own)
        target = self.call("Target.createTarget", url="about:blank", **own)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{room}.enable")

    def call(self, method: str, **params: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            found = self.read()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def read(self) -> dict:
        while b"\0" not in self.buffer:
            more = os.read(self.into, 1 << 20)
            assert more, "the browser is gone"
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def js(self, code: str):
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str):
        for _ in range(600):
            value = self.js(code)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"{code} never came true: {self.js('document.body.innerText')[:400]} {self.complaints()}")

    def open(self, page: Path | str) -> None:
        """Open a file, or an address that starts with http:."""
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.js("window.isOld = true")  # tells a document that is still there from the one that comes
        self.call("Page.navigate", url=address)
        here = f"location.href === {json.dumps(address)}"
        self.until(f"!window.isOld && document.readyState === 'complete' && {here}")

    def reopen(self, path: Path) -> None:
        """Reload, as often as it takes until the new document sees what the old one stored.

        Chromium hands localStorage to another process in the background. On a busy machine a script can
        reload sooner than that; a person cannot.
        """
        for _ in range(20):
            self.open(path)
            if self.js("typeof annotator === 'string' && annotator"):
                return
            time.sleep(0.5)
        raise AssertionError("a reload forgets the annotator")

    def key(self, name: str) -> None:
        code = NAMES.get(name, ord(name[0].upper()))
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def downloaded(self, pattern: str) -> Path:
        for _ in range(200):
            found = [p for p in self.downloads.glob(pattern) if p.stat().st_size]
            if found:
                return max(found, key=lambda p: p.stat().st_mtime_ns)
            time.sleep(0.05)
        raise AssertionError(f"no {pattern} in {list(self.downloads.glob('*'))}")

    def complaints(self) -> list[str]:
        """Exceptions, refused resources and console errors."""
        told = [e for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [json.dumps(e["params"]) for e in told]

    def asked_for(self) -> set[str]:
        """What was requested, without data: URIs."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if not url.startswith("data:")}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.out)
        os.close(self.into)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    chromium.fresh()
    chromium.size(1280, 800)
    return chromium
