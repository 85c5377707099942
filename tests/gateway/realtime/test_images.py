"""Images in realtime conversations: content parts of type `input_image`."""

import base64
import json
from typing import Any

from stretto_gateway.realtime.conversation import ITEM_BYTES, MAX_CHAR_BYTES, PART_BYTES
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import TALKS, answer, call, codes
from tests.patience import until_async

SEES = TALKS | {"tasks": [each | {"also": [*each["also"], "image"]} for each in TALKS["tasks"]]}
HEAD = "data:image/png;base64,"


def seen(data: bytes, **more: Any) -> dict[str, Any]:
    """Return a content part with an image."""
    return {"type": "input_image", "image_url": HEAD + base64.b64encode(data).decode()} | more


def item(*content: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


async def test_images_of_all_turns_are_sent_as_files(start: Start) -> None:
    """They are spoken about, also in later turns; other items and `input` of a response may have further ones."""
    running = await start(answer(), SEES)
    async with call(running) as caller:
        await caller.put(item(seen(b"one", detail="low"), {"type": "input_text", "text": "What is this?"}))
        for response in ({}, {"input": [item(seen(b"two"), seen(b"three"))], "conversation": "none"}, {}):
            await caller.send("response.create", response=response)
            events = await caller.until("response.done")
            assert events[-1].response.status == "completed"
            assert "response.output_audio.delta" in [event.type for event in events]
            await caller.put(item(seen(b"four")))
    first, second, third = running.behind.requests
    question = [{"role": "user", "image": "image"}, {"role": "user", "text": "What is this?"}]
    assert json.loads(first["messages"]) == question
    assert first["image"] == b"one"
    assert json.loads(second["messages"]) == [{"role": "user", "image": "image"}] * 2
    assert list(second["image"]) == [b"two", b"three"]
    said = {"role": "assistant", "text": "so it", "codes": codes(20)}
    assert json.loads(third["messages"]) == [*question, said, *[{"role": "user", "image": "image"}] * 2]
    assert list(third["image"]) == [b"one", b"four", b"four"]


async def test_images_are_retrieved_as_sent_and_count_as_memory(start: Start) -> None:
    running = await start(answer(), SEES)
    held = running.app.state.gateway.sessions.held
    async with call(running) as caller:
        added = await caller.put(item(seen(b"a" * 9000)) | {"id": "first"})
        assert added.item.content[0].type == "input_image"
        assert added.item.content[0].image_url is None
        found = await caller.ask("conversation.item.retrieve", item_id="first")
        assert found.item.content[0].image_url == seen(b"a" * 9000)["image_url"]
        assert held.num_bytes == ITEM_BYTES + PART_BYTES + 9000 + MAX_CHAR_BYTES * len(HEAD)
        await caller.send("response.create")
        await caller.until("response.done")
        await caller.ask("conversation.item.delete", item_id="first")
    await until_async(lambda: held.num_bytes == 0)


async def test_detail_is_listed_as_ignored_or_refused(start: Start) -> None:
    content = item(seen(b"one", detail="high"), seen(b"two", detail="auto"))
    async with call(await start(answer(), SEES)) as caller:
        added = await caller.ask("conversation.item.create", item=content)
    assert added.stretto_ignored == ["item.content.0.detail"]
    async with call(await start(answer(), SEES, strict=True)) as caller:
        error = (await caller.ask("conversation.item.create", item=content)).error
    assert error.message == "item.content.0.detail: expected 'auto', got 'high'"


async def test_model_without_images_refuses_the_response(start: Start) -> None:
    async with call(await start(answer(), TALKS)) as caller:
        await caller.put(item(seen(b"one")))
        error = (await caller.ask("response.create")).error
    expected = "'talker' does not support conversations with image as input and speech as output"
    assert (error.param, error.message) == ("session.model", f"session.model: {expected}")
