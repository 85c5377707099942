"""Open WebUI: its own server, configured only by environment variables, gets the requests that its page sends."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import aiohttp
from report import FOLDER, RECORDING, TEXT, URL, attempt, report, report_audio

SETTINGS = {
    "DATA_DIR": str(FOLDER / "data"),
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "unused",
    "OFFLINE_MODE": "True",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",  # no model is loaded for search
    "ENABLE_OLLAMA_API": "False",
    "AUDIO_TTS_ENGINE": "openai",
    "AUDIO_TTS_OPENAI_API_BASE_URL": f"{URL}/v1",
    "AUDIO_TTS_OPENAI_API_KEY": "unused",
    "AUDIO_STT_ENGINE": "openai",
    "AUDIO_STT_OPENAI_API_BASE_URL": f"{URL}/v1",
    "AUDIO_STT_OPENAI_API_KEY": "unused",
}


async def started(session: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    while True:
        try:
            async with session.get("/health") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        if process.returncode is not None:
            raise RuntimeError("Open WebUI has ended")
        await asyncio.sleep(0.5)


async def ask(session: aiohttp.ClientSession) -> None:
    async with session.post("/api/v1/auths/signin", json={"email": "", "password": ""}) as answer:
        session.headers["Authorization"] = f"Bearer {(await answer.json())['token']}"
    for name in ("voices", "models"):
        with attempt(f"list of {name}"):
            async with session.get(f"/api/v1/audio/{name}") as answer:
                listed = [entry["id"] for entry in (await answer.json())[name]]
            report(f"list of {name}", value=", ".join(listed))
    with attempt("speech"):
        async with session.post("/api/v1/audio/speech", json={"input": TEXT, "voice": "alloy"}) as answer:
            if answer.status != 200:
                raise RuntimeError(await answer.text())
            report_audio("speech", await answer.read(), "mp3")
    for path, content_type in [(RECORDING, "audio/wav"), (RECORDING.with_suffix(".webm"), "audio/webm;codecs=opus")]:
        with attempt(f"transcription of {path.suffix}"):
            form = aiohttp.FormData()
            form.add_field("file", path.read_bytes(), filename=path.name, content_type=content_type)
            async with session.post("/api/v1/audio/transcriptions", data=form) as answer:
                if answer.status != 200:
                    raise RuntimeError(await answer.text())
                report(f"transcription of {path.suffix}", text=(await answer.json())["text"])


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (FOLDER / "open_webui.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=os.environ | SETTINGS)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                await started(session, process)
                await ask(session)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


asyncio.run(main())
