"""Checks before a request is handled: browser pages at DNS names, repeated headers, keys, slashes after a path."""

import encodings

import pytest

from stretto_gateway.config import Limits
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.test_bounds import status
from tests.gateway.test_connection import connect, read_all
from tests.gateway.test_transcription import FILE, WRITTEN

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
SPEECH = {"input": "A cat.", "response_format": "pcm"}
LANGUAGE = {"accept-language": "en-GB,en;q=0.9"}
WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
BROWSERS = (
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/17.4 Safari/605.1.15",
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) {WEBKIT} Mobile/15E148",  # a page in an app
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
)
NAMES = (
    "nas.local",
    "nas.local:8003",
    "nas",
    "MAC-MINI.lan:8003",
    "speech.internal",
    "gateway.example.com",
    "nas.local.",
)


async def raw(running: Running, *lines: str, method: str = "GET", path: str = "/v1/models") -> int:
    """Send exactly these header lines and return the status."""
    head = "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", *lines, "Connection: close", ""))
    reader, writer = await connect(running, head.encode("latin-1"))
    answer = await read_all(reader)
    writer.close()
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "headers",
    [
        LANGUAGE | {"User-Agent": "Speaker/7 CFNetwork/1494.0.7 Darwin/23.4.0", "Accept-Encoding": "gzip, deflate"},
        LANGUAGE | {"User-Agent": "iOS Example/1.0 (org.example; build:1; iOS 17.4.0) Alamofire/5.9.0"},
        LANGUAGE | {"User-Agent": "AppleCoreMedia/1.0.0.21E219 (iPhone; U; CPU OS 17_4 like Mac OS X; en_gb)"},
        {"Accept-Language": "en-US,*", "User-Agent": "Mozilla/5.0"},  # Qt
        {"Accept-Language": "*", "User-Agent": "Deno/1.44.4", "Accept": "*/*"},
        {"Accept-Language": "*", "Sec-Fetch-Mode": "cors", "User-Agent": "node"},
        {"User-Agent": "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-GB) WindowsPowerShell/5.1.22621.2506"},
        {"User-Agent": "okhttp/4.12.0", "Accept-Encoding": "gzip"},
        {"User-Agent": "curl/8.5.0", "Accept": "*/*"},
        {"User-Agent": "Dart/3.4 (dart:io)", "Accept-Encoding": "gzip"},
        {"User-Agent": "Go-http-client/1.1"},
        {},  # .NET
    ],
)
async def test_programs_reach_the_gateway_by_any_name(start: Start, headers: dict[str, str]) -> None:
    running = await start()
    for host in NAMES if not headers else NAMES[:1]:
        lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
        assert await raw(running, *lines) == 200, host
        assert await raw(running, *lines, path="/v1/audio/voices") == 200
        assert await raw(running, *lines, method="HEAD") == 200


@pytest.mark.parametrize(
    ("agent", "host"), [*((BROWSERS[0], host) for host in NAMES), *((agent, NAMES[0]) for agent in BROWSERS[1:])]
)
async def test_browser_pages_at_a_name_are_refused(start: Start, agent: str, host: str) -> None:
    running = await start()
    page = [f"Host: {host}", f"User-Agent: {agent}", "Accept-Language: en"]
    for more in ([], ["Upgrade-Insecure-Requests: 1"], [f"Referer: http://{host}/"], ["X-Requested-With: fetch"]):
        assert await raw(running, *page, *more) == 403
        assert await raw(running, *page, *more, method="HEAD") == 403
    assert await raw(running, *page, path="/metrics") == 403
    assert await raw(running, "Host: [::1", *page[1:]) == 403
    assert await raw(running, *page, path="/health/live") == 200
    assert await raw(running, *page, path="/") == 200, "the page itself contains no caller's data"
    assert await raw(running, *page, "Sec-Fetch-Mode: cors") == 200, "the name has a certificate"
    for address in ("127.0.0.1:8003", "localhost:8003", "[::1]:8003"):
        assert await raw(running, f"Host: {address}", *page[1:]) == 200
    keyed = await start(keys=(KEY,))
    assert await raw(keyed, *page, f"Authorization: Bearer {KEY}") == 200


@pytest.mark.parametrize("agent", ["", "x", "python-httpx/0.28", "Firefox", "curl/8.5.0"])
async def test_unknown_programs_with_a_language_use_private_names(start: Start, agent: str) -> None:
    """Some browsers let a page choose its User-Agent; only at a public name can such a page be an attacker's."""
    running = await start()
    lines = [f"User-Agent: {agent}", "Accept-Language: en"]
    for host, expected in (
        ("nas.local", 200),
        ("nas", 200),
        ("box.home.arpa:8003", 200),
        ("evil.example.com", 403),
        ("nas.local.example.com", 403),
        ("nas.local:8003.example.com", 403),
        ("local.example", 403),
        ("evil.com.", 403),
    ):
        assert await raw(running, f"Host: {host}", *lines) == expected, host


@pytest.mark.parametrize("is_keyed", [True, False])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Authorization", (f"Bearer {KEY}", f"Bearer {KEY}")),
        ("Authorization", (f"Bearer {OTHER}", f"Bearer {KEY}")),
        ("authorization", (f"Bearer {KEY}", "")),
        ("Host", ("127.0.0.1", "evil.example")),
        ("Origin", ("http://127.0.0.1", "http://127.0.0.1")),
    ],
)
async def test_repeated_access_headers_are_refused(
    start: Start, name: str, values: tuple[str, ...], is_keyed: bool
) -> None:
    running = await start(keys=(KEY,) if is_keyed else ())
    lines = [f"{name}: {value}" for value in values]
    if name != "Authorization":
        lines.append(f"Authorization: Bearer {KEY}")
    host = [] if name == "Host" else ["Host: 127.0.0.1"]
    assert await raw(running, *host, *lines[: 2 + (name.lower() != "authorization")]) == 400
    upgrade = ["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    upgrade.append("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    for path in ("/v1/realtime", "/v1/audio/speech/stream"):
        reader, writer = await connect(
            running, "\r\n".join([f"GET {path} HTTP/1.1", *host, *lines, *upgrade, "", ""]).encode()
        )
        assert b" 400 " in await reader.readline(), path
        writer.close()


async def test_repeated_keys_of_a_websocket_are_refused(start: Start) -> None:
    running = await start(keys=(KEY,))
    protocol = f"openai-insecure-api-key.{KEY}"
    for protocols, expected in ([protocol], 101), ([protocol, f"{protocol}x"], 401), ([f"{protocol}x", protocol], 401):
        assert await status(running, subprotocols=["realtime", *protocols]) == expected


async def test_repeated_header_error_names_the_header(start: Start) -> None:
    async with (await start(keys=(KEY,))).http() as http:
        headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
        answer = await http.get("/v1/models", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "authorization: expected at most one such header, got several"


@pytest.mark.parametrize("blank", ["\xa0", "\x85", "\xa0 ", " \xa0"])
async def test_only_spaces_and_tabs_may_surround_a_key(start: Start, blank: str) -> None:
    running = await start(keys=(KEY,))
    for value in (f"Bearer {blank}{KEY}", f"Bearer {KEY}{blank}", f"Bearer{blank}{KEY}", f"{blank}{KEY}"):
        assert await raw(running, "Host: x", f"Authorization: {value}") == 401
    for value in (f"Bearer {KEY}", f"bearer   {KEY}  ", f"Bearer \t{KEY}", KEY):
        assert await raw(running, "Host: x", f"Authorization: {value}") == 200


@pytest.mark.parametrize("end", ["/", "//"])
async def test_slash_at_the_end_of_a_path_has_no_effect(start: Start, end: str) -> None:
    running = await start(WRITTEN)
    async with running.http() as http:
        for path in ("/v1/models", "/v1/audio/models", "/v1/audio/voices", "/v1/models/tts-1", "/health/live"):
            plain, other = await http.get(path), await http.get(path + end)
            assert (other.status_code, other.content) == (200, plain.content), path
            assert (await http.head(path + end)).status_code == 200
        assert (await http.get(f"/v1/models{end}")).json()["object"] == "list"
        answer = await http.post(f"/v1/audio/transcriptions{end}", files={"file": FILE})
        assert (answer.status_code, answer.json()["text"]) == (200, "a cat")
        assert (await http.get(f"/nowhere{end}")).status_code == 404
        assert (await http.get(f"/v1/audio/speech{end}")).status_code == 405
    assert await running.metric('gateway_answers_total{route="/v1/audio/transcriptions",status="200"}') == 1


async def test_speech_with_a_slash_is_not_redirected(start: Start) -> None:
    running = await start()
    async with running.http() as http:
        plain = await http.post("/v1/audio/speech", json=SPEECH)
        for path in ("/v1/audio/speech/", "/v1/audio/speech//"):
            answer = await http.post(path, json=SPEECH)
            assert (answer.status_code, answer.content) == (200, plain.content)
        batch = await http.post("/v1/audio/speech/batch/", json={"items": [SPEECH]})
        assert batch.json()["succeeded"] == 1
    client = running.openai(base_url=f"{running.url}/v1/")
    assert [model.id async for model in client.models.list()] == ["tiny"]


async def test_rules_of_a_path_apply_with_a_slash(start: Start) -> None:
    keyed = await start(keys=(KEY,), limits=Limits(max_json_bytes=1000, drain_s=1))
    async with keyed.http() as http:
        assert (await http.get("/v1/models/")).status_code == 401
        assert (await http.get("/health/live/")).status_code == 200
        headers = {"authorization": f"Bearer {KEY}"}
        large = {"file": ("cat.wav", FILE[1])}
        assert (await http.post("/v1/audio/transcriptions/", files=large, headers=headers)).status_code != 413
        answer = await http.post("/v1/realtime/client_secrets/", json={"session": {"x": "a" * 2000}}, headers=headers)
        assert answer.status_code == 413


@pytest.mark.slow
async def test_reference_page_with_a_slash_redirects_by_a_relative_path(start: Start) -> None:
    running = await start(keys=(KEY,))
    async with running.http() as http:
        for method in ("GET", "HEAD"):
            answer = await http.request(method, "/docs/")
            assert (answer.status_code, answer.headers["location"]) == (307, "../docs")
        assert (await http.get("/docs/", follow_redirects=True)).text.startswith("<!doctype html>")
        assert (await http.get("//")).status_code == 200


def form(name: bytes = b"model") -> bytes:
    head = b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % name
    return head + b"xn--\xc3\xa4\xff" * 100 + b"\r\n--B--\r\n"


@pytest.mark.parametrize(
    ("charset", "got"),
    [
        ("x" * 20_000, "'xxxx"),
        ("nonsense", "'nonsense'"),
        ('"undefined"', "'undefined'"),
        ("idna", "'idna'"),
        ("utf-7", "'utf-7'"),
        ("utf-8; charset=punycode", "'utf-8'"),
        ("utf-8x", "'utf-8x'"),
        ("", "'none'"),
    ],
)
async def test_other_charsets_of_forms_are_refused_and_not_kept(start: Start, charset: str, got: str) -> None:
    running = await start()
    known = set(encodings._cache)  # type: ignore[attr-defined]
    async with running.http() as http:
        for kind in (
            f"multipart/form-data; boundary=B; charset={charset}",
            f"Multipart/x; CHARSET ={charset}; boundary=B",
        ):
            answer = await http.post("/v1/audio/transcriptions", content=form(), headers={"content-type": kind})
            assert answer.status_code == 400
            assert f"expected a form with the charset utf-8, got {got}" in answer.json()["error"]["message"]
    assert set(encodings._cache) == known  # type: ignore[attr-defined]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"us-ascii"', "ISO-8859-1"])
async def test_usual_charsets_of_forms_are_read(start: Start, charset: str) -> None:
    running = await start()
    async with running.http() as http:
        kind = f"multipart/form-data; charset={charset}; boundary=B"
        answer = await http.post("/v1/audio/transcriptions", content=form(), headers={"content-type": kind})
    assert "charset" not in answer.text
    assert answer.status_code in (400, 404)
