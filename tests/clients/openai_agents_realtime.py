"""OpenAI Agents SDK: a RealtimeSession with default settings has a written turn, then a spoken one."""

import asyncio
import os

from report import URL, attempt, recorded_pcm, report

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"

from agents.realtime import RealtimeAgent, RealtimeRunner


async def speak(session) -> None:
    pcm = recorded_pcm()
    for start in range(0, len(pcm), 4800):
        await session.send_audio(pcm[start : start + 4800])


async def main() -> None:
    url = f"{URL.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime-2.1"
    runner = RealtimeRunner(RealtimeAgent(name="Assistant", instructions="Be brief."))
    session = await runner.run(model_config={"url": url, "api_key": "unused"})
    num_bytes, steps = 0, ["written turn", "spoken turn"]
    async with session, asyncio.timeout(300):
        await session.send_message("Hello.")
        async for event in session:
            if event.type == "error":
                raise RuntimeError(event.error)
            if event.type == "audio":
                num_bytes += len(event.audio.data)
            if event.type == "agent_end":
                report(steps.pop(0), num_samples=num_bytes // 2)
                num_bytes = 0
                if not steps:
                    break
                await speak(session)
        settings = session.model._created_session
    report("settings", instructions=settings.instructions, voice=settings.audio.output.voice)


with attempt("session"):
    asyncio.run(main())
