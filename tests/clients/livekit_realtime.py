"""LiveKit Agents: a RealtimeModel with default settings greets with generate_reply(), then answers a spoken turn."""

import asyncio

from livekit import rtc
from livekit.plugins.openai.realtime import RealtimeModel
from report import URL, attempt, recorded_pcm, report


async def num_samples(generation) -> int:
    found = 0
    async for message in generation.message_stream:
        async for frame in message.audio_stream:
            found += frame.samples_per_channel
    return found


async def main() -> None:
    model = RealtimeModel(base_url=f"{URL}/v1", api_key="unused")
    session, events, errors, generations = model.session(), [], [], asyncio.Queue()
    session.on("openai_server_event_received", events.append)
    session.on("error", lambda error: errors.append(str(error)))
    session.on("generation_created", generations.put_nowait)
    await session.update_instructions("You are kind.")
    async with asyncio.timeout(300):
        generation = await session.generate_reply(instructions="Greet the user.")
        await generations.get()
        report("greeting", num_samples=await num_samples(generation))
        pcm = recorded_pcm()
        for start in range(0, len(pcm), 4800):
            data = pcm[start : start + 4800]
            session.push_audio(rtc.AudioFrame(data, 24_000, 1, len(data) // 2))
        report("spoken turn", num_samples=await num_samples(await generations.get()))
    settings = next(event["session"] for event in reversed(events) if event["type"] == "session.updated")
    report("settings", instructions=settings["instructions"], voice=settings["audio"]["output"]["voice"])
    await session.aclose()
    await model.aclose()
    if errors:
        raise RuntimeError(errors[0])


with attempt("session"):
    asyncio.run(main())
