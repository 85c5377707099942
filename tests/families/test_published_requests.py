"""Complete requests become prompts, with converted small releases of the published families."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.releases.random_espnet import write_tokenizer
from stretto.errors import InvalidRequest
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.published_checkpoints import FAMILIES, convert, write_release

PCM = np.zeros(16_000, np.float32)
SECOND: dict[str, Any] = {"pcm_in": PCM, "sample_rate": 16_000}
CODES = [[5, 6]] * 9
USER = {"role": "user", "text": "o"}
TASKS = [
    None,
    "tts",
    "understand",
    "chat",
    "generate",
    "asr",
    "text_lm",
    "audio_lm",
    "dialogue",
    "speak",
    "text_dialogue",
]


@pytest.fixture(scope="module")
def preprocessors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Preprocessor]:
    folder = tmp_path_factory.mktemp("published")
    opened = {}
    for name in FAMILIES:
        checkpoint = convert(name, write_release(name, folder / name), folder / f"{name}-converted")
        opened[name.replace("-", "_")] = Preprocessor(checkpoint)
    return opened


def messages(*turns: dict[str, Any]) -> str:
    return json.dumps(turns)


@pytest.mark.parametrize(
    ("family", "raw", "task", "num_rows"),
    [
        ("bagpiper", RawRequest(text="o"), "tts", 7),
        ("bagpiper", RawRequest(text="o", **SECOND), "understand", 1 + 3 + 3 + 13 + 4 + 2),
        ("bagpiper", RawRequest(text="o", task="chat"), "chat", 1 + 3 + 4 + 2),
        ("opuslm", RawRequest(text="o"), "tts", 3 + 1 + 8 + 1),
        ("opuslm", RawRequest(messages=messages({"role": "user", "codes": CODES})), "asr", 3 + 10 + 1),
        (
            "opuslm",
            RawRequest(messages=messages({"role": "system", "codes": CODES}, USER)),
            "tts",
            3 + 1 + 8 + 1 + 508 + 1,
        ),
        ("opuslm_dialogue", RawRequest(text="o"), "dialogue", 2 + 2 + 1 + 8 + 2),
        (
            "opuslm_dialogue",
            RawRequest(messages=messages({"role": "user", "codes": CODES, "text": "o"})),
            "dialogue",
            2 + 2 + 10 + 2 + 1 + 8 + 2,
        ),
    ],
)
def test_published_family_request_becomes_a_prompt(
    preprocessors: dict[str, Preprocessor], family: str, raw: RawRequest, task: str, num_rows: int
) -> None:
    preprocessor = preprocessors[family]
    prompt = preprocessor.prepare(raw)
    system = len(preprocessor_system(preprocessor)) if family == "bagpiper" and task != "tts" else 0
    assert (prompt.task, len(prompt.rows)) == (task, num_rows + system)
    assert prompt.rows.shape[1] == preprocessor.family.layout.num_input_streams
    assert prompt.sampling.draws_as(preprocessor.family.task(task).sampling)


def preprocessor_system(preprocessor: Preprocessor) -> list[int]:
    """Return the ids of the usual system text."""
    return preprocessor.template._subwords.ids("You are a helpful assistant.", "")  # type: ignore[attr-defined]


def test_text_is_recoverable_from_the_rows(preprocessors: dict[str, Preprocessor], tmp_path: Path) -> None:
    tokenizer = TextTokenizer.at(write_tokenizer(tmp_path, 300))
    text = "What do you hear? 中 😀"
    rows = preprocessors["bagpiper"].prepare(RawRequest(text=text)).rows
    spoken = b"".join(tokenizer.bytes_of(token_id - 256) for token_id in rows[3:-3, 0])
    assert spoken.decode() == text


@pytest.mark.parametrize(
    ("family", "raw", "message"),
    [
        ("bagpiper", RawRequest(text=""), "text: expected text of at least one character, got ''"),
        ("bagpiper", RawRequest(text="o" * 8001), "text: expected at most 8000 characters, got 8001 characters"),
        ("bagpiper", RawRequest(text="o", task="understand"), "audio: expected audio for task 'understand', got text"),
        (
            "bagpiper",
            RawRequest(text="o", task="tts", **SECOND),
            "pcm_in: expected only text for task 'tts', got audio",
        ),
        (
            "bagpiper",
            RawRequest(text="o", options='{"voice": "rms"}'),
            "options.voice: expected no value (this model has no named voices",
        ),
        (
            "bagpiper",
            RawRequest(messages=messages(*[{"role": "user", "text": "o " * 4000}] * 9), task="chat"),
            "messages: expected a prompt of at most 32767 rows, got",
        ),
        (
            "opuslm",
            RawRequest(**SECOND),
            "pcm_in: expected codes [9][T] in messages, because the checkpoint has no ssl_to",
        ),
        ("opuslm", RawRequest(text="o", **SECOND), "pcm_in: expected only text for task 'tts', got audio and text"),
        (
            "opuslm",
            RawRequest(
                messages=messages({"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "o"}), **SECOND
            ),
            "messages[0].audio: expected a recording of a voice, got silence",
        ),
        (
            "opuslm",
            RawRequest(messages=messages({"role": "user", "codes": CODES[:8]})),
            "messages[0].codes: expected 9 streams, got 8 streams",
        ),
        (
            "opuslm_dialogue",
            RawRequest(messages=messages({"role": "assistant", "text": "o"}), task="dialogue"),
            "messages[0].role: expected 'user' in the last turn for task 'dialogue', got 'assistant'",
        ),
    ],
)
def test_invalid_request_error_names_the_field(
    preprocessors: dict[str, Preprocessor], family: str, raw: RawRequest, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        preprocessors[family].prepare(raw)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


CODES_OF_ANY_SHAPE = st.lists(st.lists(st.integers(-1, 20), max_size=3), max_size=10)
CONTENTS = {
    "text": st.text(max_size=4) | st.none(),
    "codes": CODES_OF_ANY_SHAPE | st.just(CODES),
    "audio": st.sampled_from(["pcm_in", "audio"]),
}
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"])}, optional=CONTENTS), max_size=4
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(family=st.sampled_from(["bagpiper", "opuslm", "opuslm_dialogue"]), turns=TURNS, task=st.sampled_from(TASKS))
def test_arbitrary_conversations_are_prepared_or_refused(
    preprocessors: dict[str, Preprocessor], family: str, turns: list[dict[str, Any]], task: str | None
) -> None:
    hears = any(turn.get("audio") == "pcm_in" for turn in turns)
    raw = RawRequest(messages=json.dumps(turns), task=task, **(SECOND if hears else {}))
    layout = preprocessors[family].family.layout
    try:
        rows = preprocessors[family].prepare(raw).rows
    except InvalidRequest as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is fine; this is about the refusal's length
        return
    assert rows.dtype == np.int32
    assert rows.min() >= 0
    assert rows.max() < layout.vocab_size
