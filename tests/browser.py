"""A Chromium that tests drive over its DevTools protocol."""

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

EXECUTABLE = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-default-apps", "--no-default-browser-check", "--password-store=basic", "--use-mock-keychain"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--hide-scrollbars"),
    *("--remote-debugging-port=0", "about:blank"),
)
PATIENCE_S = 120.0  # generous, for a busy machine
Record = dict[str, Any]


class Browser:
    """DevTools connection to a Chromium. `on` holds event handlers by session and event name."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Record]] = {}
        self.on: dict[tuple[str | None, str], Callable[[Record], None]] = {}
        self._contexts: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    async def send(self, method: str, session: str | None = None, **params: Any) -> Record:
        """Send a command and return its result; raise RuntimeError if it fails."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._connection.send(json.dumps(message | ({} if session is None else {"sessionId": session})))
        async with asyncio.timeout(PATIENCE_S):
            return await answer

    async def _read(self) -> None:
        async for message in self._connection:
            record = json.loads(message)
            if "id" not in record:
                handle = self.on.get((record.get("sessionId"), record["method"]))
                if handle is not None:
                    handle(record["params"])
            elif not (answer := self._answers.pop(record["id"])).done():
                if "error" in record:
                    answer.set_exception(RuntimeError(str(record["error"])))
                else:
                    answer.set_result(record["result"])

    async def tab(self) -> "Tab":
        """Open a tab in its own browser context, which does not share storage with other tabs."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        self._contexts.append(context)
        target = await self.send("Target.createTarget", url="about:blank", browserContextId=context)
        session = (await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True))["sessionId"]
        tab = Tab(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await tab.send(f"{domain}.enable")
        return tab

    async def leave(self) -> None:
        """Close all tabs and stop reading."""
        for context in self._contexts:
            await self.send("Target.disposeBrowserContext", browserContextId=context)
        self._reading.cancel()


class Tab:
    """A page, with the addresses that it has requested and the errors that it has logged."""

    def __init__(self, browser: Browser, session: str, context: str):
        self._browser = browser
        self._session = session
        self._context = context
        self.urls: list[str] = []
        self.complaints: list[str] = []
        self._answering: list[asyncio.Future[Record]] = []
        browser.on[session, "Network.requestWillBeSent"] = lambda record: self.urls.append(record["request"]["url"])
        browser.on[session, "Log.entryAdded"] = lambda record: self.complaints.append(record["entry"]["text"])
        browser.on[session, "Runtime.exceptionThrown"] = lambda record: self.complaints.append(str(record))

    async def send(self, method: str, **params: Any) -> Record:
        """Send a command to this page."""
        return await self._browser.send(method, self._session, **params)

    async def open(self, url: str, until: str) -> None:
        """Load a page and wait until the JavaScript expression `until` is true."""
        is_loaded = asyncio.Event()
        self._browser.on[self._session, "Page.loadEventFired"] = lambda _: is_loaded.set()
        await self.send("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE_S):
            await is_loaded.wait()
        await self.wait(until)

    async def value(self, script: str) -> Any:
        """Evaluate a JavaScript expression, awaiting promises; raise RuntimeError if it fails."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = await self.send("Runtime.evaluate", **asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true; after PATIENCE_S, raise TimeoutError with the page's errors."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self.value(f"Boolean({condition})"):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimeoutError(f"{condition} never held; complaints: {self.complaints}") from None

    async def click(self, selector: str) -> None:
        """Click the centre of an element."""
        place = await self.value(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const {{ x, y, width, height }} = element.getBoundingClientRect();
            return {{ x: x + width / 2, y: y + height / 2 }};
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    async def write(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        await self.value(f"(field => (field.focus(), field.select()))(document.querySelector({json.dumps(selector)}))")
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key. In `modifiers`, 2 is Control and 8 is Shift."""
        text = {"Enter": "\r", " ": " "}.get(key, "") if not modifiers else ""
        code = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}[key]
        known = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **known, **({"text": text} if text else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    async def text(self, selector: str) -> str:
        """Return the text of an element; empty if it is not visible."""
        return str(await self.value(shown_text(selector)))

    async def reads(self, selector: str, text: str) -> None:
        """Wait until the visible text of an element begins with `text`."""
        await self.wait(f"{shown_text(selector)}.startsWith({json.dumps(text)})")

    async def picture(self, path: Path) -> None:
        """Save a screenshot as PNG."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def choose(self, selector: str, file: Path) -> None:
        """Select a file in a file input."""
        document = await self.send("DOM.getDocument")
        node = await self.send("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file)])

    async def serve(self, pattern: str, content: str, media_type: str) -> None:
        """Answer the page's requests for matching addresses with `content`, in place of the server."""
        body = base64.b64encode(content.encode()).decode()
        answer = {"responseCode": 200, "body": body}
        headers = [{"name": "content-type", "value": media_type}]

        def fulfill(record: Record) -> None:
            request = self.send(
                "Fetch.fulfillRequest", requestId=record["requestId"], responseHeaders=headers, **answer
            )
            self._answering.append(asyncio.ensure_future(request))

        self._browser.on[self._session, "Fetch.requestPaused"] = fulfill
        await self.send("Fetch.enable", patterns=[{"urlPattern": pattern}])

    async def save_downloads_to(self, folder: Path) -> None:
        """Save downloads to a folder."""
        known = {"behavior": "allow", "downloadPath": str(folder), "browserContextId": self._context}
        await self._browser.send("Browser.setDownloadBehavior", **known)


def shown_text(selector: str) -> str:
    """Return the JavaScript expression for the visible text of an element."""
    return f"(each => each.checkVisibility() ? each.innerText : '')(document.querySelector({json.dumps(selector)}))"


@contextmanager
def chromium(folder: Path) -> Iterator[str]:
    """Run a Chromium with its profile in an empty folder during the `with` block; yield its DevTools address."""
    own = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    log = folder / "log"
    command = [EXECUTABLE, f"--user-data-dir={folder / 'profile'}", *FLAGS]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | own, stdout=output, stderr=output, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE_S
        while (match := re.search(r"DevTools listening on (ws://\S+)\s", log.read_text(errors="replace"))) is None:
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, "Chromium does not report its address"
            time.sleep(0.05)
        yield match[1]
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # kills the children too; the files are discarded
        process.wait()


@asynccontextmanager
async def driving(address: str) -> AsyncIterator[Browser]:
    """Connect to a Chromium during the `with` block and yield the connection."""
    async with connect(address, max_size=None, proxy=None) as connection:
        browser = Browser(connection)
        try:
            yield browser
        finally:
            await browser.leave()
