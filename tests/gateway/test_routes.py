"""Routes of installed packages: the one of docs/api.md, and those that are refused."""

import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from stretto_gateway import app, guard, routes
from stretto_gateway.command import arguments, main, read_config
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.routes import GROUP, RouteState, installed_routes
from tests.gateway.conftest import Start

ROOT = Path(__file__).parents[2]
MODULE = "stretto_greeting"
KEY = "sk-0123456789abcdef"
Install = Callable[[str], None]


def example() -> str:
    """Return the module that docs/api.md shows."""
    page = (ROOT / "docs/api.md").read_text()
    return re.findall(r"```python\n(.*?)```", page[page.index("## Routes of your own") :], re.DOTALL)[0]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with the module of docs/api.md, and the entry points in a text."""
    caches = (routes.installed_routes, app.all_routes, guard.single_headers)

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()
        sys.modules.pop(MODULE, None)

    def begin(points: str) -> None:
        (tmp_path / f"{MODULE}.py").write_text(example())
        folder = tmp_path / f"{MODULE}-1.0.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)
        forget()

    yield begin
    monkeypatch.undo()
    forget()


@pytest.mark.slow
async def test_route_of_another_package_is_served_behind_the_guard(install: Install, start: Start) -> None:
    install(f"greeting = {MODULE}:ROUTE")
    config = read_config(arguments().parse_args(["--port", "0", "--greeting", "Good day"]))
    options = sys.modules[MODULE].GreetingOptions
    assert config.of_route(options) == options("Good day")
    running = await start(keys=(KEY,))
    async with running.http() as http:
        assert (await http.get("/v1/greeting")).status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        answer = await http.get("/v1/greeting", headers=headers)
        schema = (await http.get("/openapi.json", headers=headers)).json()
    assert answer.json() == {"greeting": "Hello"}
    assert schema["paths"]["/v1/greeting"]["get"]["description"] == "Greet the caller."
    assert "x-request-id" in answer.headers
    with pytest.raises(ValueError, match="--greeting: expected at most 100 characters, got 101"):
        read_config(arguments().parse_args(["--port", "0", "--greeting", "a" * 101]))


async def test_state_of_a_route_starts_with_the_gateway(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[RouteState]()

    async def begin(self: RouteState) -> None:
        started.append(self)

    monkeypatch.setattr(RealtimeState, "start", begin)
    running = await start()
    assert started == [running.app.state.gateway.of_route(RealtimeState)]


async def test_route_that_is_not_installed_is_not_served(start: Start) -> None:
    async with (await start()).http() as http:
        assert (await http.get("/v1/greeting")).status_code == 404


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (f"realtime = {MODULE}:ROUTE", "realtime: expected one installed route, got stretto_gateway.realtime.route"),
        (f"greeting = {MODULE}:ROUT", f"greeting: cannot import {MODULE}:ROUT: AttributeError"),
    ],
)
def test_invalid_routes_are_refused_at_the_start(
    install: Install, points: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(points)
    assert main(["--port", "0"]) == 1
    assert capsys.readouterr().err.startswith(f"stretto gateway: {GROUP}: {message}")


def test_package_without_routes_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("")
    monkeypatch.setattr(routes, "entry_points", lambda group: ())
    with pytest.raises(ValueError, match="expected those of the package stretto, got none"):
        installed_routes()


def test_endpoint_that_another_route_has_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("")
    points = [EntryPoint(name, "stretto_gateway.speech_stream:ROUTE", GROUP) for name in ("one", "another")]
    monkeypatch.setattr(routes, "entry_points", lambda group: points)
    with pytest.raises(ValueError, match="expected one endpoint for WEBSOCKET /v1/audio/speech/stream, got two"):
        app.all_routes()
