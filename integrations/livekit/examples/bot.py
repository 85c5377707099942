"""Voice agent in a LiveKit room.

    pip install livekit-plugins-openai ./integrations/livekit
    STRETTO_URL=http://localhost:8003/v1 OPENAI_API_KEY=... python -m livekit.agents dev bot.py

Stretto transcribes and speaks; the replies are written by OpenAI's default model.
"""

import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, inference
from livekit.plugins import openai, stretto

URL = os.environ.get("STRETTO_URL", "http://localhost:8003/v1")
ROLE = "You talk with a caller. Answer in one or two sentences, without formatting."
server = AgentServer()


def make_session() -> AgentSession:
    """Return a session whose history has only the words that were played, also after an interruption."""
    speech = stretto.TTS(base_url=URL, voice="alloy")
    speech.on("speech_done", lambda report: print("unusual speech:", report) if report else None)
    return AgentSession(
        stt=openai.STT(base_url=URL, api_key="unused", use_realtime=True),
        llm=openai.LLM(),
        tts=speech,
        vad=inference.VAD(),
        use_tts_aligned_transcript=True,
    )


@server.rtc_session()
async def talk(job: JobContext) -> None:
    """Talk with the people in a LiveKit room."""
    session = make_session()
    await session.start(Agent(instructions=ROLE), room=job.room)
    session.generate_reply(instructions="Greet the caller.")
