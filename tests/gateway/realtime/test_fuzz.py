"""Each invalid realtime event gets an error, and the session continues."""

import asyncio
import base64
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto_gateway.config import GatewayConfig, Limits
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.events import EVENTS
from tests.client.fake_server import FakeServer
from tests.gateway.line import Line
from tests.gateway.realtime.caller import TALKS, answer, check, run_over
from tests.gateway.test_fuzz import JSON, SCALARS, values
from tests.tiers import by_night

SOUND = st.binary(max_size=4000).map(lambda data: base64.b64encode(data[: len(data) // 2 * 2]).decode())


def event(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw an event of this type that is mostly valid."""
    schema = EVENTS[kind].model_json_schema()
    fields = values(schema, schema.get("$defs", {})).filter(lambda record: isinstance(record, dict))
    known = st.fixed_dictionaries({"type": st.just(kind)})
    sound = st.fixed_dictionaries({"audio": SOUND}) if kind.endswith("append") else st.just({})
    return st.tuples(fields, known, sound).map(lambda parts: parts[0] | parts[1] | parts[2])


TURN = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "id": "i", "content": [
    {"type": "input_text", "text": "a"}]}}  # fmt: skip
BEGUN = [json.dumps(TURN), json.dumps({"type": "response.create"})]
GOOD = st.sampled_from(
    [
        TURN,
        {"type": "response.create"},
        {"type": "conversation.item.delete", "item_id": "i"},
        {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
        {"type": "session.update", "session": {"type": "transcription"}},
        {"type": "input_audio_buffer.append", "audio": "AAAA" * 1600},
    ]
)
MESSAGES = st.one_of(
    st.one_of([event(kind) for kind in EVENTS]).map(json.dumps),
    GOOD.map(json.dumps),
    JSON.map(json.dumps),
    st.text(st.characters(codec="utf-8"), max_size=50),
    st.binary(max_size=50),
    st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, '{"type": NaN}', '{"type": "\\ud800"}']),
    SCALARS.map(lambda kind: json.dumps({"type": kind, "event_id": kind})),
)


class CheckedLine(Line):
    """Fake WebSocket that checks every event against the types of the `openai` package."""

    async def send(self, message: dict[str, Any]) -> None:
        await super().send(message)
        if message["type"] == "websocket.send":
            check(message["text"])


@pytest.mark.slow
@pytest.mark.parametrize("examples", [120, *by_night(500)])
def test_realtime_events_never_end_a_session_or_cause_internal_errors(
    examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Several events per session: each invalid one is reported, and the next valid one is answered."""
    seen: set[str] = set()
    last = json.dumps({"type": "conversation.item.retrieve", "item_id": "nothing", "event_id": "the last"})
    with asyncio.Runner() as runner:
        behind = FakeServer(lambda _: answer())
        behind.profile = TALKS
        gateway = runner.run(open_gateway(behind))

        @given(st.sampled_from([[], BEGUN]), st.lists(MESSAGES, min_size=1, max_size=6))
        @settings(max_examples=examples)
        def talk(begun: list[str], messages: list[str | bytes]) -> None:
            line = CheckedLine([*begun, *messages, last])
            runner.run(run_over(gateway, line))
            errors = [each["error"]["event_id"] for each in line.said if each["type"] == "error"]
            assert "the last" in errors
            assert not gateway.sessions.held.num_bytes, "what a session held it holds no longer"
            seen.update(each["type"] for each in line.said)

        talk()
        runner.run(gateway.close())
        runner.run(behind.stop())
    assert {"session.updated", "conversation.item.added", "response.created", "error"} <= seen
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def open_gateway(behind: FakeServer) -> Gateway:
    """Return a gateway in front of a fake server."""
    return Gateway(GatewayConfig(await behind.start(), limits=Limits(max_turn_s=2)))
