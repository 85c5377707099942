"""Kyutai's protocols at a gateway with keys, uploaded voices or several servers."""

import asyncio
import json
from pathlib import Path

import msgpack
import pytest

from plugins.kyutai.tests.gateway.test_protocols import ASR, CHAT, TTS, Partner
from plugins.kyutai.tests.gateway.test_protocols import DUPLEX as TALKS
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.realtime.test_bounds import KEY, open_socket, status
from tests.gateway.test_guard import raw
from tests.gateway.test_model_servers import Begin
from tests.gateway.test_voices import CLONES, RECORDING, added_voice
from tests.gateway.test_voices_in_conversations import start_duplex
from tests.patience import PATIENCE_S, until_async


async def test_api_key_is_accepted_in_header_or_query(start: Start) -> None:
    running = await start(Partner([]), TALKS, keys=(KEY,))
    for path in (CHAT, ASR, TTS):
        assert await status(running, path) == 401
        assert await status(running, path, additional_headers={"kyutai-api-key": KEY[:-1]}) == 401
        assert await status(running, path, additional_headers={"kyutai-api-key": KEY}) == 101
        assert await status(running, f"{path}?auth_id={KEY}") == 101
        assert await status(running, path, additional_headers={"authorization": f"Bearer {KEY}"}) == 101
    assert await status(running, f"/v1/realtime?auth_id={KEY}") == 401, "only Kyutai's clients have keys there"
    async with running.http() as http:
        assert (await http.get("/api/build_info")).status_code == 200
        assert (await http.get(f"/v1/models?auth_id={KEY}")).status_code == 401


async def test_repeated_keys_are_refused(start: Start) -> None:
    running = await start(keys=(KEY,))
    assert await status(running, f"{TTS}?auth_id={KEY}&auth_id=x") == 401
    keys = [f"kyutai-api-key: {KEY}"] * 2
    assert await raw(running, "Host: 127.0.0.1", *keys, f"Authorization: Bearer {KEY}") == 400


async def test_clients_find_both_servers_at_one_gateway(several: Begin) -> None:
    gateway = await several("talker", "scribe", "piper-en", "second-voice")
    query = "?format=PcmMessagePack&voice=unmute-prod-website/default_voice.wav"
    for path, server in ((f"{TTS}{query}", "piper-en"), (f"{TTS}{query}&model=other", "second-voice")):
        async with open_socket(gateway.running, path) as opened:
            for message in (msgpack.packb({"type": "Text", "text": "cat"}), msgpack.packb({"type": "Eos"})):
                await opened.send(message)
            kinds = {msgpack.unpackb(message)["type"] async for message in opened}
        assert kinds == {"Ready", "Text", "Audio"}
        assert len(gateway.servers[server].requests) == 1
    async with open_socket(gateway.running, ASR) as opened:
        await opened.send(msgpack.packb({"type": "Audio", "pcm": [0.0] * 1920}))
        await until_async(lambda: gateway.servers["scribe"].requests != [])
    async with gateway.running.http() as http:
        assert (await http.get("/api/build_info")).status_code == 200


async def test_chat_is_in_an_uploaded_voice(start: Start, tmp_path: Path) -> None:
    running, partner = await start_duplex(start, tmp_path)
    async with open_socket(running, f"{CHAT}?voice_prompt=Mine&text_prompt=Be%20kind.") as opened:
        async with asyncio.timeout(PATIENCE_S):
            assert await opened.recv() == b"\x00"
        assert partner.turns == [{"role": "system", "text": "Be kind.", "audio": "audio"}]
        assert running.app.state.gateway.sessions.held.num_bytes == len(RECORDING)
    await running.until(gateway_sessions=0)
    assert running.app.state.gateway.sessions.held.num_bytes == 0
    (opening,) = [request for request in running.behind.requests if request.get("task") == b"duplex"]
    assert opening["audio"] == RECORDING


@pytest.mark.parametrize("query", ["voice=MINE", "voice=&seed=&temperature=&top_k=&cfg_alpha="])
async def test_speech_is_in_an_uploaded_voice_and_blank_fields_count_as_missing(
    start: Start, tmp_path: Path, query: str
) -> None:
    running = await start(SPOKEN, CLONES, voices=tmp_path, strict=True)
    await added_voice(running)
    del running.behind.requests[:]
    async with open_socket(running, f"{TTS}?format=PCM&{query}") as opened, asyncio.timeout(PATIENCE_S):
        await opened.send("A cat.")
        await opened.send(b"\0")
        assert isinstance(await opened.recv(), bytes)
    assert running.behind.requests[0].get("audio") == (RECORDING if "MINE" in query else None)
    assert set(json.loads(running.behind.requests[0]["options"])) == {"output", "seed"}  # a seed of its own
