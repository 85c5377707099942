"""Uploaded voices: stored, used by id, deleted, and private to their owner."""

import asyncio
import dataclasses
import errno
import json
import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import pytest

from stretto.launcher import front_ends
from stretto.launcher.config import launch_config, parser
from stretto.launcher.front_ends import GatewayProcess
from stretto.launcher.launch_log import LaunchLog
from stretto_gateway.catalogue import VOICE_ALIASES
from stretto_gateway.command import VOICES, arguments, read_config
from stretto_gateway.config import Limits
from stretto_gateway.pronunciation_store import PronunciationStore
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.voice_file import write_voice
from stretto_gateway.voice_preview import SEED, SENTENCE
from stretto_gateway.voice_store import StoredVoice, TooManyVoices, VoiceStore
from tests.client.fake_server import PROFILE, Chunk, ErrorText, Request, Until
from tests.gateway.conftest import SPOKEN, Running, Start
from tests.gateway.realtime.test_bounds import open_socket
from tests.patience import PATIENCE_S, until_async

KEYS = ("the-key-of-the-first", "the-key-of-the-other")
RECORDING = bytes(range(256)) * 8  # with ends of lines in it
FORM = {"name": "mine", "consent": "my own", "ref_text": "It is me."}
ABOUT = {"language": "en-GB", "gender": "female", "description": "calm, and a little hoarse"}
STRANGE_IDS = ("voice_", "voice_" + "A" * 32, "voice_" + "0" * 33, "..", "%2e%2e%2fkeys", "voice_" + "0" * 31 + "%0a")


def cloning(*system: str) -> dict[str, Any]:
    """Return the profile of a model that takes a voice in a system turn with this content."""
    tasks = [each | {"system": list(system)} if each["name"] == "tts" else each for each in PROFILE["tasks"]]
    return PROFILE | {"tasks": tasks}


CLONES = cloning("text", "audio")


def exported_voice(**change: str) -> bytes:
    """Return the file of a voice."""
    fields = {"name": "mine", "text": "It is me.", "consent": "my own"} | ABOUT | change
    return write_voice(StoredVoice("", created_at=1, **fields), RECORDING)


class Caller:
    """Client of the gateway, with or without a key."""

    def __init__(self, running: Running, key: str | None = None):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(
            base_url=f"{running.url}/v1/audio", headers=headers, timeout=PATIENCE_S, verify=False
        )

    async def bring(self, recording: bytes = RECORDING, **form: str) -> httpx.Response:
        async with self._http as http:
            return await http.post("/voices", data=FORM | form, files={"audio_sample": ("me.wav", recording)})

    async def export(self, voice: str) -> httpx.Response:
        async with self._http as http:
            return await http.get(f"/voices/{voice}/export")

    async def import_(self, file: bytes) -> httpx.Response:
        async with self._http as http:
            return await http.post("/voices/import", files={"file": ("mine.voice", file)})

    async def list(self) -> dict[str, Any]:
        async with self._http as http:
            return (await http.get("/voices")).json()

    async def forget(self, voice: str) -> httpx.Response:
        async with self._http as http:
            return await http.delete(f"/voices/{voice}")

    async def speak(self, voice: str, text: str = "A cat.") -> httpx.Response:
        async with self._http as http:
            return await http.post("/speech", json={"input": text, "voice": voice, "response_format": "pcm"})


async def added_voice(running: Running, key: str | None = None, **form: str) -> str:
    """Add a voice and return its id."""
    answer = await Caller(running, key).bring(**form)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def told(request: Request) -> tuple[dict[str, Any], bytes]:
    """Return the system turn of a request and its recording."""
    return json.loads(request["messages"])[0], request["audio"]


async def test_full_disk_while_storing_a_voice_returns_507(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        answer = await Caller(running).bring()
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_room")
    assert (await Caller(running).list())["data"] == []
    await added_voice(running)


async def test_a_voice_is_usable_after_a_restart_until_it_is_deleted(start: Start, tmp_path: Path) -> None:
    first = await start(SPOKEN, CLONES, voices=tmp_path / "voices")
    voice = await added_voice(first)
    again = await start(SPOKEN, CLONES, voices=tmp_path / "voices")
    for running in (first, again):
        listed = await Caller(running).list()
        assert listed["form"] == ["audio_sample", "name", "consent", "ref_text", *ABOUT]
        (known,) = listed["data"]
        assert known | FORM == known
        assert (known["id"], known["object"]) == (voice, "audio.voice")
        answer = await Caller(running).speak(voice)
        assert answer.status_code == 200
        assert len(answer.content) > 0
        request = running.behind.requests[-1]
        assert told(request) == ({"role": "system", "audio": "audio", "text": "It is me."}, RECORDING)
        assert json.loads(request["messages"])[1] == {"role": "user", "text": "A cat."}
        assert "voice" not in json.loads(request["options"])
    assert (await Caller(again).forget(voice)).json() == {"id": voice, "object": "audio.voice.deleted", "deleted": True}
    for running in (first, again):
        refused = await Caller(running).speak(voice)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "voice_not_found")
        assert (await Caller(running).list())["data"] == []
        assert (await Caller(running).forget(voice)).status_code == 404


async def test_voice_is_described_and_has_a_preview(start: Start, tmp_path: Path) -> None:
    """A preview is a request for speech, and counts as use."""
    running = await start(SPOKEN, CLONES | {"voice_details": {"rms": ABOUT}}, voices=tmp_path / "voices")
    plain = await added_voice(running)
    described = await added_voice(running, **ABOUT)
    listed = await Caller(running).list()
    assert {voice["id"]: {name: voice[name] for name in ABOUT} for voice in listed["data"]} == {
        plain: dict.fromkeys(ABOUT, ""),
        described: ABOUT,
    }
    details = {voice["id"]: {name: voice[name] for name in ABOUT} for voice in listed["voices"]}
    unknown = dict.fromkeys(ABOUT, "")
    assert details == {"slt": unknown, "rms": ABOUT, plain: unknown, described: ABOUT}
    previews = {voice["id"]: voice["preview"] for voice in listed["voices"]}
    assert previews.keys() == {*PROFILE["voices"], plain, described}
    async with running.http() as http:
        for voice, preview in previews.items():
            answer = await http.get(preview, params={"response_format": "pcm"})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/pcm")
            assert len(answer.content) > 0
            request = running.behind.requests[-1]
            options = json.loads(request["options"])
            assert options["seed"] == SEED
            assert options.get("voice") == voice or told(request)[1] == RECORDING
        unknown_name = await http.get("/v1/audio/voices/anna/preview")
        usage = (await http.get("/v1/usage")).json()
    assert (unknown_name.status_code, unknown_name.json()["error"]["param"]) == (400, "voice")
    assert usage["characters"] >= len(previews) * len(SENTENCE)


async def test_exported_voice_is_tried_and_stored_by_another_gateway(start: Start, tmp_path: Path) -> None:
    """Only the key that added a voice exports it, and the copy belongs to the key that imports it."""
    running = await start(SPOKEN, CLONES, keys=KEYS, voices=tmp_path / "voices")
    voice = await added_voice(running, KEYS[0], **ABOUT)
    exported = await Caller(running, KEYS[0]).export(voice)
    assert exported.status_code == 200, exported.text
    assert exported.headers[ResponseHeader.CONTENT_DISPOSITION] == f'attachment; filename="{voice}.voice"'
    other = await start(SPOKEN, CLONES, keys=KEYS, voices=tmp_path / "other")
    answer = await Caller(other, KEYS[1]).import_(exported.content)
    assert answer.status_code == 200, answer.text
    assert told(other.behind.requests[0]) == ({"role": "system", "audio": "audio", "text": "It is me."}, RECORDING)
    assert answer.json() | FORM | ABOUT == answer.json()
    assert (await Caller(other, KEYS[0]).list())["data"] == []
    assert (await Caller(other, KEYS[1]).speak("mine")).status_code == 200
    for unknown in (voice.replace("_", "_0")[:-1], *STRANGE_IDS):
        assert (await Caller(running, KEYS[0]).export(unknown)).status_code == 404, unknown
    refused = await Caller(running, KEYS[1]).export(voice)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "voice_not_found")


async def test_imported_voices_are_refused_as_uploaded_ones(start: Start, tmp_path: Path) -> None:
    limits = Limits(max_voices=1, drain_s=1)
    running = await start(SPOKEN, CLONES, limits=limits, voices=tmp_path / "voices")
    file = exported_voice()
    no_store = await start(SPOKEN, CLONES)
    silent = await start([ErrorText("invalid request: audio: expected speech, got silence")], CLONES, voices=tmp_path)
    plain = await start(SPOKEN, cloning("audio"), voices=tmp_path)
    large = file + bytes(limits.max_voice_bytes)
    for gateway, data, status, message in (
        (no_store, file, 400, "this gateway stores no voices"),
        (silent, file, 400, "file: expected speech, got silence"),
        (plain, file, 400, "ref_text: expected no value"),
        (running, file[:-1], 400, "file: sha256: expected the digest"),
        (running, large, 400, "file: recording: expected 1 to 4194304 bytes"),
        (running, large + bytes(1 << 17), 413, "the body has more than"),
        (running, file, 200, ""),
        (running, file, 400, "there are 1 voices of this key"),
    ):
        answer = await Caller(gateway).import_(data)
        assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert len([*tmp_path.rglob("*.recording")]) == 1


def test_voice_that_was_stored_without_a_description_is_read(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path, 1)
    voice = store.add("everybody", "mine", "", "yes", b"a", **ABOUT)
    path = tmp_path / "everybody" / f"{voice.id}.recording"
    record = json.loads(path.read_bytes().partition(b"\n")[0])
    path.write_text(json.dumps({name: value for name, value in record.items() if name not in ABOUT}) + "\na")
    assert store.find("everybody", voice.id) == (dataclasses.replace(voice, **dict.fromkeys(ABOUT, "")), b"a")


async def test_stored_voices_survive_a_gateway_restart(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VOICES, raising=False)
    monkeypatch.setattr(GatewayProcess, "_start", lambda _: None)
    monkeypatch.setattr(front_ends, "gateway_spare", lambda launch, log: None)
    monkeypatch.setattr(front_ends, "state_folder", lambda: tmp_path)
    ids = []
    for _ in range(2):
        launch: Any = None  # of a gateway that is never started
        config = launch_config(*parser().parse_known_args(["--gateway", "--log-file", str(tmp_path / "log")]))
        line = GatewayProcess(config, 8003, launch, LaunchLog(None)).command_line()
        running = await start(
            SPOKEN, CLONES, voices=read_config(arguments().parse_args(line[line.index("--server") :])).voices
        )
        ids.append(await added_voice(running))
        listed = await Caller(running).list()
        in_list = [voice["id"] for voice in listed["data"]]
        assert sorted(in_list) == sorted(ids)
        assert in_list == [
            each["id"] for each in sorted(listed["data"], key=lambda each: (each["created_at"], each["id"]))
        ]
        uploaded = [(voice["id"], voice["name"]) for voice in listed["voices"][2:]]
        assert uploaded == [(voice, "mine") for voice in in_list]
        assert (await Caller(running).speak(ids[0])).status_code == 200


async def test_batch_and_long_text_requests_use_the_cloned_voice(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path)
    voice = await added_voice(running)
    del running.behind.requests[:]
    assert (await Caller(running).speak(voice, "This sentence is said again. " * 10)).status_code == 200
    async with running.http() as http:
        items = [{"input": "One."}, {"input": "Two.", "voice": "alloy"}]
        batch = {"items": items, "voice": {"id": voice}, "check": "off"}
        answer = await http.post("/v1/audio/speech/batch", json=batch)
    assert answer.json()["succeeded"] == 2
    with_voice = [request for request in running.behind.requests if "messages" in request]
    assert len(with_voice) > 2
    assert {told(request)[1] for request in with_voice} == {RECORDING}
    assert [request["text"] for request in running.behind.requests if "text" in request] == [b"Two."]


ALONE = cloning("text", "audio") | {"voices": []}


async def test_uploaded_voice_is_used_by_its_name(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path, strict=True)
    await added_voice(running, name="Grandma Élise")
    names = ("Grandma Élise", "grandma élise", " GRANDMA ÉLISE ", unicodedata.normalize("NFD", "Grandma Élise"))
    async with running.http() as http:
        for name in names:
            del running.behind.requests[:]
            body = {"input": "A cat.", "voice": name, "response_format": "pcm"}
            assert (await http.post("/v1/audio/speech", json=body)).status_code == 200
            assert (await http.post("/v1/audio/speech", json=body | {"voice": {"id": name}})).status_code == 200
            batch = {"items": [{"input": "A cat."}, {"input": "A cat.", "voice": "slt"}], "voice": name}
            batch["check"] = "off"
            answer = await http.post("/v1/audio/speech/batch", json=batch)
            assert (answer.status_code, answer.json()["succeeded"]) == (200, 2), answer.text
            assert [request.get("audio") for request in running.behind.requests].count(RECORDING) == 3, name
    del running.behind.requests[:]
    async with open_socket(running, "/v1/audio/speech/stream") as opened, asyncio.timeout(PATIENCE_S):
        for event in (
            {"type": "session.config", "voice": names[1]},
            {"type": "input.text", "text": "A cat."},
            {"type": "input.done"},
        ):
            await opened.send(json.dumps(event))
        while not isinstance(await opened.recv(), bytes):
            pass
    assert told(running.behind.requests[0])[1] == RECORDING


async def test_ambiguous_voice_name_is_refused_with_the_ids(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path)
    ids = {await added_voice(running), await added_voice(running)}
    other = await added_voice(running, name="MINE")
    num_asked = len(running.behind.requests)
    answer = await Caller(running).speak("mine")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "voice")
    assert all(voice in error["message"] for voice in ids)
    assert "one of your 2 voices with this name" in error["message"]
    assert len(running.behind.requests) == num_asked
    assert (await Caller(running).speak("MINE")).status_code == 200, "it is the only one in these letters"
    assert (await Caller(running).speak("Mine")).status_code == 400
    for voice in (*ids, other):
        assert (await Caller(running).speak(voice)).status_code == 200
    await Caller(running).forget(ids.pop())
    assert (await Caller(running).speak("mine")).status_code == 200
    for _ in range(6):
        await added_voice(running)
    assert "7 voices" in (await Caller(running).speak("mine")).json()["error"]["message"]


async def test_voices_of_the_model_precede_uploaded_ones_and_these_precede_aliases(
    start: Start, tmp_path: Path
) -> None:
    without = await start(SPOKEN, ALONE, voices=tmp_path)
    await added_voice(without, name="SLT")
    await added_voice(without, name="Alloy")
    assert (await Caller(without).speak("slt")).status_code == 200
    assert told(without.behind.requests[-1])[1] == RECORDING
    running = await start(SPOKEN, CLONES, voices=tmp_path)
    assert (await Caller(running).speak("slt")).status_code == 200
    assert json.loads(running.behind.requests[-1]["options"])["voice"] == "slt"
    assert (await Caller(running).speak("alloy")).status_code == 200
    assert told(running.behind.requests[-1])[1] == RECORDING
    assert (await Caller(running).speak("ash")).status_code == 200
    assert json.loads(running.behind.requests[-1]["options"])["voice"] in ("slt", "rms")
    assert {"alloy", "ash"} & set((await Caller(running).list())["aliases"]) == {"ash"}
    refused = await Caller(running).bring(name=" Slt")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "name")
    assert "expected a name that no voice of 'tiny' has, got ' Slt'" in refused.json()["error"]["message"]


async def test_voice_names_are_private_to_their_key(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, keys=KEYS, voices=tmp_path)
    await added_voice(running, KEYS[0])
    assert (await Caller(running, KEYS[0]).speak("mine")).status_code == 200
    others, nobodys = [await Caller(running, KEYS[1]).speak(name) for name in ("mine", "nobodys")]
    assert others.status_code == nobodys.status_code == 400
    assert others.text.replace("'mine'", "") == nobodys.text.replace("'nobodys'", "")
    own = (await Caller(running, KEYS[0]).speak("nobodys")).json()["error"]["message"]
    assert "expected one of slt, rms, mine, alloy" in own


async def test_stored_names_do_not_affect_a_model_that_clones_no_voices(start: Start, tmp_path: Path) -> None:
    await added_voice(await start(SPOKEN, CLONES, voices=tmp_path), name="alloy")
    running = await start(SPOKEN, voices=tmp_path)
    assert (await Caller(running).speak("alloy")).status_code == 200
    assert json.loads(running.behind.requests[-1]["options"])["voice"] == "slt"
    assert "alloy" in (await Caller(running).list())["aliases"]


@pytest.mark.parametrize("field", ["audio", "messages[0].audio"])
async def test_refused_recordings_are_reported_under_their_request_field(
    start: Start, tmp_path: Path, field: str
) -> None:
    """Silence, for example, is refused by the server."""
    voice = await added_voice(await start(SPOKEN, CLONES, voices=tmp_path))
    running = await start(
        [ErrorText(f"invalid request: {field}: expected a recording of a voice, got silence")], CLONES, voices=tmp_path
    )
    told = "expected a recording of a voice, got silence"
    answer = await Caller(running).bring(name="silent")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"audio_sample: {told}")
    assert answer.json()["error"]["param"] == "audio_sample"
    assert [each["id"] for each in (await Caller(running).list())["data"]] == [voice]
    async with running.http() as http:
        for name, value in (("voice", "mine"), ("ref_audio", "AAAA")):
            answer = await http.post("/v1/audio/speech", json={"input": "A cat.", name: value})
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{name}: {told}")


async def test_voice_beside_ref_audio_is_reported_as_ignored(start: Start, tmp_path: Path) -> None:
    for is_strict in (False, True):
        running = await start(SPOKEN, CLONES, voices=tmp_path, strict=is_strict)
        voice = await added_voice(running)
        body: dict[str, Any] = {"input": "A cat.", "ref_audio": "UklGRg==", "response_format": "pcm"}
        async with running.http() as http:
            for more in ({"voice": "slt"}, {"voice": "alloy"}, {"voice": voice}, {"voice": "nobody"}):
                answer = await http.post("/v1/audio/speech", json=body | more)
                assert (answer.status_code, answer.headers[ResponseHeader.IGNORED]) == (200, "voice"), more
                assert running.behind.requests[-1]["audio"] == b"RIFF"
            for more in ({}, {"voice": None}, {"voice": ""}):
                assert ResponseHeader.IGNORED not in (await http.post("/v1/audio/speech", json=body | more)).headers
            batch = await http.post("/v1/audio/speech/batch", json={"items": [body | {"voice": "slt"}]})
            assert batch.headers[ResponseHeader.IGNORED] == "voice"
        assert (await Caller(running).forget(voice)).status_code == 200


async def test_ref_text_beside_an_uploaded_voice_is_reported_as_ignored(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path)
    await added_voice(running)
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json={"input": "A cat.", "voice": "mine", "ref_text": "It is I."})
    assert (answer.status_code, answer.headers[ResponseHeader.IGNORED]) == (200, "ref_text")
    assert told(running.behind.requests[-1]) == ({"role": "system", "audio": "audio", "text": "It is me."}, RECORDING)


async def test_voice_recordings_count_as_held_while_speaking(start: Start, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    limits = Limits(max_held_bytes=2 * len(RECORDING) - 1, drain_s=1)
    held_up = [SPOKEN[0], Until(goes_on), *SPOKEN[1:]]
    voice = await added_voice(await start(SPOKEN, CLONES, voices=tmp_path))
    running = await start(held_up, CLONES, limits, voices=tmp_path)
    speaking = asyncio.ensure_future(Caller(running).speak(voice))
    await until_async(lambda: running.behind.requests)
    full = await Caller(running).speak(voice)
    assert (full.status_code, full.json()["error"]["code"]) == (503, "unavailable")
    goes_on.set()
    assert (await speaking).status_code == 200
    assert (await Caller(running).speak(voice)).status_code == 200


async def test_stored_voices_are_private_to_their_key(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, keys=KEYS, voices=tmp_path)
    voice = await added_voice(running, KEYS[0])
    theirs = await added_voice(running, KEYS[1])
    assert voice != theirs
    assert [each["id"] for each in (await Caller(running, KEYS[1]).list())["data"]] == [theirs]
    num_asked = len(running.behind.requests)
    others = await Caller(running, KEYS[1]).speak(voice)
    nobodys = await Caller(running, KEYS[1]).speak(f"voice_{'0' * 32}")
    assert others.status_code == nobodys.status_code == 400
    assert others.text.replace(voice, "") == nobodys.text.replace(f"voice_{'0' * 32}", "")
    assert len(running.behind.requests) == num_asked
    assert (await Caller(running, KEYS[1]).forget(voice)).status_code == 404
    assert (await Caller(running, KEYS[0]).speak(voice)).status_code == 200
    assert (await Caller(running).list())["error"]["code"] == "invalid_api_key"
    assert not any(key in str(path) for path in tmp_path.rglob("*") for key in KEYS)


@pytest.mark.parametrize("voice", STRANGE_IDS)
async def test_invalid_voice_ids_reach_no_file(start: Start, tmp_path: Path, voice: str) -> None:
    (tmp_path / "keys").write_text("secret")
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices")
    await added_voice(running)
    assert (await Caller(running).forget(voice)).status_code in (404, 405)
    answer = await Caller(running).speak(voice)
    assert answer.status_code == 400
    assert "secret" not in answer.text
    assert (tmp_path / "keys").exists()
    assert len((await Caller(running).list())["data"]) == 1


@pytest.mark.parametrize(
    ("profile", "has_folder", "message"),
    [
        (PROFILE, True, "'tiny' does not clone voices"),
        (cloning("text"), True, "'tiny' does not clone voices"),
        (CLONES, False, "voice: this gateway stores no voices; start it with --voices FOLDER"),
    ],
)
async def test_unsupported_voice_storage_is_reported(
    start: Start, tmp_path: Path, profile: dict[str, Any], has_folder: bool, message: str
) -> None:
    running = await start(SPOKEN, profile, voices=tmp_path if has_folder else None)
    for answer in (await Caller(running).bring(), await Caller(running).speak(f"voice_{'0' * 32}")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
        assert message in answer.json()["error"]["message"]
    assert (await Caller(running).list())["data"] == []
    assert running.behind.requests == []


async def test_voice_without_reference_text_support_refuses_ref_text(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, cloning("audio"), voices=tmp_path)
    answer = await Caller(running).bring()
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ref_text")
    voice = await added_voice(running, ref_text="")
    assert (await Caller(running).speak(voice)).status_code == 200
    assert told(running.behind.requests[-1]) == ({"role": "system", "audio": "audio"}, RECORDING)


async def test_refused_voices_are_not_kept(start: Start, tmp_path: Path) -> None:
    refusal = "invalid request: messages[0].text: expected at most 40 characters, got 41"
    running = await start([ErrorText(refusal)], CLONES, voices=tmp_path)
    answer = await Caller(running).bring()
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ref_text")
    assert answer.json()["error"]["message"].startswith("ref_text: expected")
    assert not list(tmp_path.iterdir())


async def test_voice_check_ends_at_the_first_audio(start: Start, tmp_path: Path) -> None:
    """The rest of the model's answer would be an error."""
    running = await start([Chunk(0, 640), ErrorText("failed")], CLONES, voices=tmp_path)
    await added_voice(running)
    assert await running.metric("gateway_active") == 0


async def test_stored_voices_are_limited_in_size_and_number(start: Start, tmp_path: Path) -> None:
    limits = Limits(max_voices=2, max_voice_bytes=len(RECORDING), drain_s=1)
    running = await start(SPOKEN, CLONES, limits, voices=tmp_path)
    longer = await Caller(running).bring(RECORDING + b"0")
    assert (longer.status_code, longer.json()["error"]["param"]) == (400, "audio_sample")
    assert (await Caller(running).bring(bytes(200_000))).status_code == 413
    async with running.http() as http:
        plain = await http.post("/v1/audio/voices", content=bytes(2 << 20), headers={"content-type": "text/plain"})
    assert plain.status_code == 413
    voice = await added_voice(running)
    await added_voice(running)
    third = await Caller(running).bring()
    assert (third.status_code, third.json()["error"]["code"]) == (400, "too_many_voices")
    await Caller(running).forget(voice)
    await added_voice(running)


async def test_log_has_no_voice_ids_or_metadata(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stretto_gateway")
    running = await start(SPOKEN, CLONES, voices=tmp_path)
    voice = await added_voice(running)
    await Caller(running).forget(voice)
    assert "/v1/audio/voices/{voice_id}" in caplog.text
    for said in (voice, *FORM.values()):
        assert said not in caplog.text


def test_damaged_or_unfinished_voices_do_not_affect_others(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path, 3)
    kept, cut = (store.add("everybody", name, "", "yes", b"a\nb\n") for name in ("kept", "cut"))
    (tmp_path / "everybody" / f"{cut.id}.recording").write_bytes(b'{"id": "voi')
    left, underway = (tmp_path / "everybody" / f"voice_{digit * 32}.unfinished" for digit in "01")
    for path in (left, underway):
        path.write_bytes(b"{")
    os.utime(left, (0, 0))
    store = VoiceStore(tmp_path, 3)
    assert not left.exists()
    assert underway.exists()
    assert [each.name for each in store.all("everybody")] == ["kept"]
    assert store.find("everybody", kept.id) == (kept, b"a\nb\n")
    assert store.find("everybody", cut.id) is None
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "everybody").glob(f"{kept.id}*")} == {0o600}
    store.add("everybody", "third", "", "yes", b"")
    with pytest.raises(TooManyVoices):
        store.add("everybody", "fourth", "", "yes", b"")
    assert store.add("0" * 64, "of another", "", "yes", b"")
    with pytest.raises(ValueError, match="expected an owner"):
        store.add("../everybody", "nobody's", "", "yes", b"")


def test_voice_additions_and_deletions_are_fsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, written, fsync = VoiceStore(tmp_path, 3), list[str](), os.fsync

    def noted(file: int) -> None:
        written.append(os.readlink(f"/proc/self/fd/{file}").removeprefix(str(tmp_path)))
        fsync(file)

    monkeypatch.setattr("os.fsync", noted)
    voice = store.add("everybody", "mine", "", "yes", b"")
    assert written == ["", f"/everybody/{voice.id}.unfinished", "/everybody"]
    del written[:]
    assert store.remove("everybody", voice.id)
    assert written == ["/everybody"]


@pytest.mark.parametrize(
    "line",
    [b'"what was said"', b'{"id": "what was said"}', b"what was said \xff", b'{"text": "what was said", "x": 1}', b""],
)
def test_damaged_voice_file_is_logged_without_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    store = VoiceStore(tmp_path, 3)
    voice = store.add("everybody", "mine", "", "yes", b"")
    (tmp_path / "everybody" / f"{voice.id}.recording").write_bytes(line + b"\n")
    assert store.all("everybody") == []
    assert f"{voice.id} is not a voice" in caplog.text
    assert "what was said" not in caplog.text


@pytest.mark.parametrize("change", [{"created_at": "today"}, {"name": 5}, {"text": None}, {"id": ["a"]}])
def test_stored_voice_with_invalid_fields_is_skipped(tmp_path: Path, change: dict[str, Any]) -> None:
    store = VoiceStore(tmp_path, 3)
    kept, odd = (store.add("everybody", name, "", "yes", b"") for name in ("kept", "odd"))
    record = {"id": odd.id, "name": "odd", "text": "", "consent": "yes", "created_at": 1} | change
    (tmp_path / "everybody" / f"{odd.id}.recording").write_text(json.dumps(record) + "\n")
    assert store.all("everybody") == [kept]
    assert store.find("everybody", odd.id) is None


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (errno.EACCES, 500, "storage_failed"),
        (errno.EROFS, 500, "storage_failed"),
        (errno.EIO, 500, "storage_failed"),
        (errno.EDQUOT, 507, "no_room"),
    ],
)
async def test_folder_that_cannot_be_used_is_reported_and_logged_with_the_reason(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    status: int,
    code: str,
) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices")
    voice = await added_voice(running)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "secret"))

    with monkeypatch.context() as patch:
        for name in ("add", "all", "head", "remove"):
            patch.setattr(VoiceStore, name, fail)
        for name in ("find", "replace", "remove"):
            patch.setattr(PronunciationStore, name, fail)
        async with running.http() as http:
            answers = [
                await Caller(running).bring(),
                await Caller(running).forget(voice),
                await Caller(running).speak(voice),
                await http.get("/v1/audio/voices"),
                await http.get("/v1/audio/pronunciations"),
                await http.put("/v1/audio/pronunciations", json={"SQL": "sequel"}),
                await http.delete("/v1/audio/pronunciations"),
                await Caller(running).speak("alloy"),
            ]
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert error["message"].endswith(os.strerror(number))
        assert "secret" not in error["message"]
    assert caplog.text.count(f"secret: {os.strerror(number)}") == len(answers)
    assert (await Caller(running).speak(voice)).status_code == 200


MARKED = "One. [voice:mine]Two. [voice:rms]Three."


async def sent_as(running: Running, text: str, key: str | None = None, **fields: Any) -> httpx.Response:
    """Return the answer to a request for speech."""
    async with running.http() as http:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = {"model": "tts-1", "input": text, "response_format": "pcm", "check": "off"} | fields
        return await http.post("/v1/audio/speech", json=body, headers=headers)


async def test_marks_in_a_text_select_the_callers_and_the_models_voices(start: Start, tmp_path: Path) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices")
    await added_voice(running)
    running.behind.requests.clear()
    assert (await sent_as(running, MARKED, voice="slt")).status_code == 200
    first, second, third = running.behind.requests
    assert json.loads(first["options"])["voice"] == "slt"
    assert told(second)[1] == RECORDING
    assert json.loads(third["options"])["voice"] == "rms"


async def test_marks_of_voices_that_a_caller_may_not_use_are_refused_before_speech(
    start: Start, tmp_path: Path
) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path / "voices", keys=KEYS)
    await added_voice(running, KEYS[0])
    running.behind.requests.clear()
    answer = await sent_as(running, MARKED, KEYS[1])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "input.voice")
    assert error["message"].startswith("input.voice: expected one of slt, rms, ")
    assert (await sent_as(running, MARKED, KEYS[0])).status_code == 200
    aliases = "".join(f"One. [voice:{name}]" for name in VOICE_ALIASES * 2)
    running.behind.requests.clear()
    error = (await sent_as(running, aliases.upper() + aliases, KEYS[0])).json()["error"]
    assert error["message"] == "input.voice: expected at most 32 different voices, got more"
    assert not running.behind.requests
