"""Requests that can never run are refused, with the reason and its numbers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stretto.engine.host import StartedEngines
from stretto.engine.prompt_checks import Capacity, check_prompt, max_rows
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.families.tiny.family import FIRST_CODE, TINY
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.small_vocabularies import BAGPIPER, CSM, OPUSLM
from tests.speech_families import EIGHT_STREAMS, RECORDED, TRACKED

ROOMY = Capacity(num_blocks=100, block_size=32, max_num_seqs=16)
RULES = SegmentRules(TINY, 512)


def refusal(prompt: Prompt, rules: SegmentRules = RULES, capacity: Capacity = ROOMY) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_prompt(prompt, rules, capacity)
    return caught.value


def with_rows(rows: np.ndarray, task: str = "tts") -> Prompt:
    return Prompt(task, rows, TINY.task(task).sampling)


def test_valid_prompt_is_admitted_unchanged() -> None:
    prompt = make_prompt(TINY, 0)
    assert check_prompt(prompt, RULES, ROOMY) == prompt


@pytest.mark.parametrize("num_engines", [1, 2, 4])
def test_capacity_is_that_of_a_single_engine(num_engines: int) -> None:
    ready = SimpleNamespace(num_gpu_blocks=25, block_size=32, max_num_seqs=16)
    engine: Any = SimpleNamespace(ready=ready, started=StartedEngines([], 64, 8), num_engines=num_engines)
    assert Capacity.from_engine(engine) == Capacity(25, 32, 16, 64, 8, num_engines)


def test_voice_may_not_be_negative() -> None:
    error = refusal(replace(make_prompt(TINY, 0), voice=-1), RULES)
    assert str(error) == "voice: expected an integer of at least 0, got -1"


def test_guidance_is_refused_without_an_audio_segment() -> None:
    error = refusal(make_prompt(TINY, 0, "asr", guidance_scale=3.0))
    assert str(error) == "options.guidance_scale: expected 1.0, because task 'asr' has no audio segment, got 3.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 101.0}, "options.guidance_scale: expected a number in [0.0, 100.0], got 101.0"),
        ({"policy": "until_s"}, "options.guidance.until_s: expected a number of seconds, because policy is 'until_s'"),
    ],
)
def test_sampling_of_a_python_program_is_checked_as_the_options_of_a_request(
    changes: dict[str, Any], message: str
) -> None:
    prompt = make_prompt(TINY, 0)
    assert str(refusal(replace(prompt, sampling=replace(prompt.sampling, **changes)))).startswith(message)


def test_unknown_task_error_lists_the_known_tasks() -> None:
    error = refusal(replace(make_prompt(TINY, 0), task="sing"))
    assert error.field == "task"
    assert "['asr', 'tts']" in str(error)
    assert "sing" in str(error)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 9), np.int32),
        np.zeros((3, 8), np.int32),
        np.zeros(9, np.int32),
        np.zeros((3, 9), np.float32),
        [[20] * 9],
    ],
    ids=["empty", "too narrow", "flat", "not whole numbers", "a list"],
)
def test_misshapen_rows_are_refused(rows: np.ndarray) -> None:
    assert refusal(with_rows(rows)).field == "rows"


@pytest.mark.parametrize(
    ("stream", "token_id"), [(0, -1), (0, TINY.layout.vocab_size), (1, FIRST_CODE - 1), (1, FIRST_CODE + 256), (8, -3)]
)
def test_ids_outside_the_stream_range_are_refused(stream: int, token_id: int) -> None:
    rows = make_prompt(TINY, 0).rows
    rows[2, stream] = token_id
    error = refusal(with_rows(rows))
    assert f"stream {stream} " in str(error)
    assert str(token_id) in str(error)


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ((5, 544), "track: expected token ids in [0, 544), got 5 ... 544"),
        ((-1,), "track: expected token ids in [0, 544), got -1 ... -1"),
        ((5,) * 108, "text: expected at most 107 tokens after the prompt, got 108"),
    ],
)
def test_text_track_ids_and_length_are_limited(track: tuple[int, ...], said: str) -> None:
    rules, prompt = SegmentRules(TRACKED, 112), replace(make_prompt(TRACKED, 0), track=(5,) * 107)
    assert check_prompt(prompt, rules, ROOMY) == prompt
    assert said in str(refusal(replace(prompt, track=track), rules))


def test_family_without_text_track_refuses_track_ids() -> None:
    assert "track: expected no ids (tiny has no text track), got 2 ids" in str(
        refusal(replace(make_prompt(TINY, 0), track=(5, 6)))
    )


def test_audio_continuation_prompts_need_a_valid_delayed_tail() -> None:
    rules = SegmentRules(OPUSLM, 512)
    prompt = make_prompt(OPUSLM, 3, "audio_lm")
    assert check_prompt(prompt, rules, ROOMY) == prompt
    too_long = replace(prompt, delayed_tail=np.zeros((9, 8), np.int32))
    assert "at most 8 rows" in str(refusal(too_long, rules))
    elsewhere = replace(prompt, delayed_tail=np.full((8, 8), 3, np.int32))
    assert "stream 1 " in str(refusal(elsewhere, rules))
    assert refusal(replace(prompt, task="asr"), rules).field == "delayed_tail"


def test_reference_rows_must_hold_codes_in_a_supporting_family() -> None:
    rules = SegmentRules(CSM, 512)
    rows = np.array([[57, *[58] * 5], *[[ids.start + row for ids in CSM.layout.audio] for row in range(3)]], np.int32)
    prompt = replace(make_prompt(CSM, 0, "tts", guidance_scale=1.0), rows=rows, num_reference_rows=3)
    assert check_prompt(prompt, rules, ROOMY) == prompt
    assert "at most 4, the number of prompt rows, got 5" in str(refusal(replace(prompt, num_reference_rows=5), rules))
    words = refusal(replace(prompt, num_reference_rows=4), rules)
    assert "codes of stream 0 in [60, 68) in the rows of a reference, got 57 ... 62" in str(words)
    for family, task in ((TINY, "tts"), (OPUSLM, "asr")):
        other = replace(make_prompt(family, 0, task, guidance_scale=1.0), num_reference_rows=1)
        assert refusal(other, SegmentRules(family, 512)).field == "num_reference_rows"


def test_guidance_is_refused_for_opuslm() -> None:
    prompt = make_prompt(OPUSLM, 0, "tts", guidance_scale=3.0)
    assert "opuslm has no guidance" in str(refusal(prompt, SegmentRules(OPUSLM, 512)))


def test_stream_specific_pads_are_admitted() -> None:
    prompt = make_prompt(BAGPIPER, 0, "speak", guidance_scale=1.0)
    prompt.rows[2, 1:] = [ids[0] for ids in BAGPIPER.layout.extra[1:]]
    assert check_prompt(prompt, SegmentRules(BAGPIPER, 512), ROOMY) == prompt
    prompt.rows[2, 1] = BAGPIPER.layout.extra[2][0]
    assert "stream 1 " in str(refusal(prompt, SegmentRules(BAGPIPER, 512)))


def test_prompt_with_no_space_for_a_reply_is_refused() -> None:
    rows = np.ones((RULES.text_limit(TINY.task("tts")) + 1, 9), np.int32)
    rows[:, 1:] = 0
    error = refusal(with_rows(rows))
    assert str(len(rows)) in str(error)
    assert str(len(rows) - 1) in str(error)


def test_guidance_needs_two_slots() -> None:
    error = refusal(make_prompt(TINY, 0), capacity=replace(ROOMY, max_num_seqs=1))
    assert error.field == "options.guidance_scale"


def test_cfg_pair_exceeding_kv_cache_is_refused_with_block_counts() -> None:
    prompt = make_prompt(TINY, 0)
    capacity = Capacity(num_blocks=4, block_size=32, max_num_seqs=16)
    error = refusal(prompt, capacity=capacity)
    rows = (
        len(prompt.rows) + prompt.sampling.text.max_rows + 2 + prompt.sampling.audio.max_rows + 1 + RULES.num_tail_rows
    )
    assert f"{2 * -(-rows // 32)} blocks ({rows} rows, doubled by guidance)" in str(error)
    assert "a prompt and reply of at most 3 KV blocks of 32 rows" in str(error)
    alone = replace(prompt, sampling=replace(prompt.sampling, guidance_scale=1.0))
    assert check_prompt(alone, RULES, capacity) == alone


@pytest.mark.parametrize(("task", "field"), [("tts", "options.audio.max_rows"), ("asr", "options.text.max_rows")])
def test_reply_exceeding_kv_cache_is_refused_with_block_counts(task: str, field: str) -> None:
    prompt = make_prompt(TINY, 3, task, guidance_scale=1.0)
    rows = max_rows(len(prompt.rows), TINY.task(task), prompt.sampling, RULES)
    needed = -(-rows // 32)
    assert check_prompt(prompt, RULES, replace(ROOMY, num_blocks=needed + 1)) == prompt
    error = refusal(prompt, capacity=replace(ROOMY, num_blocks=needed))
    assert error.field == field
    assert f"at most {needed - 1} KV blocks of 32 rows" in str(error)
    assert f"{needed} blocks ({rows} rows)" in str(error)


def test_cfg_pair_that_exactly_fits_the_kv_cache_is_admitted() -> None:
    prompt = make_prompt(TINY, 0)
    needed = 2 * -(-max_rows(len(prompt.rows), TINY.task("tts"), prompt.sampling, RULES) // 32)
    assert check_prompt(prompt, RULES, replace(ROOMY, num_blocks=needed + 1)) == prompt
    refusal(prompt, capacity=replace(ROOMY, num_blocks=needed))


def test_max_rows_is_capped_at_the_model_length() -> None:
    prompt = make_prompt(TINY, 0)
    sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, max_rows=5000))
    assert max_rows(len(prompt.rows), TINY.task("tts"), sampling, RULES) == RULES.max_model_len


def test_guided_audio_first_prompt_needs_two_rows() -> None:
    prompt = make_prompt(EIGHT_STREAMS, 0, "speak")
    short = Prompt("speak", prompt.rows[:1], prompt.sampling)
    assert "at least 2 rows" in str(refusal(short, SegmentRules(EIGHT_STREAMS, 512)))


def test_streamed_text_requires_an_unguided_text_track_family() -> None:
    rules, prompt = SegmentRules(TRACKED, 512), replace(make_prompt(TRACKED, 0), is_open=True)
    assert prompt.sampling.guidance_scale == 2.0
    assert "text: expected the complete text (a guided reply does not support streamed text)" in str(
        refusal(prompt, rules)
    )
    alone = replace(prompt, sampling=replace(prompt.sampling, guidance_scale=1.0))
    assert check_prompt(alone, rules, ROOMY) == alone
    room = min(alone.sampling.audio.max_rows, rules.audio_limit - len(alone.rows)) - 1  # one frame reads the end
    assert check_prompt(replace(alone, track=(20,) * room), rules, ROOMY)
    longer = replace(alone, track=(20,) * (room + 1))
    assert f"text: expected at most {room} tokens after the prompt, got {room + 1}" in str(refusal(longer, rules))
    tiny = replace(make_prompt(TINY, 0), is_open=True)
    assert "text: expected the complete text (tiny does not support streamed text)" in str(refusal(tiny))


def test_max_sessions_reserves_windows_and_one_reply() -> None:
    """A session of an hour holds the 25 blocks of a 750-row window and two more; another reply holds 153."""
    rules = SegmentRules(RECORDED, 45_056)
    capacity = Capacity(1026, 32, 256, window=750, num_in_flight=4096)
    assert capacity.max_sessions(rules) == (1025 - 153) // 27
    assert replace(capacity, num_engines=2).max_sessions(rules) == 2 * 32
    assert replace(capacity, max_num_seqs=8).max_sessions(rules) == 7
    assert replace(capacity, num_blocks=30).max_sessions(rules) == 1
    assert replace(capacity, window=None).max_sessions(rules) == 1  # 1408 blocks each
    assert Capacity(10 * 1408 + 1, 32, 256).max_sessions(rules) == 9


def test_attention_window_limits_the_required_kv_blocks() -> None:
    prompt = make_prompt(RECORDED, 1)
    rules = SegmentRules(RECORDED, 160)
    assert refusal(prompt, rules, Capacity(4, 32, 8)).field == "options.text.max_rows"
    check_prompt(prompt, rules, Capacity(4, 32, 8, window=20, num_in_flight=32))


def test_only_live_sessions_may_start_without_frames() -> None:
    prompt = replace(make_prompt(RECORDED, 1), track=())
    rules = SegmentRules(RECORDED, 160)
    assert check_prompt(replace(prompt, is_open=True), rules, ROOMY).is_open
    assert refusal(prompt, rules).field == "track"


@pytest.mark.parametrize(
    ("num_frames", "last_id", "field", "message"),
    [
        (500, 0, "audio", "expected at most 141 frames of audio, got 500 frames"),
        (2, -1, "track", "ids in [0, "),
        (2, RECORDED.layout.vocab_size, "track", "ids in [0, "),
    ],
)
def test_frames_of_a_recording_are_limited(num_frames: int, last_id: int, field: str, message: str) -> None:
    prompt = make_prompt(RECORDED, 1)
    code_track = RECORDED.code_track
    assert code_track is not None
    width = len(code_track.streams)
    track = [prompt.track[0]] * (num_frames * width - 1) + [last_id]
    refused = refusal(replace(prompt, track=tuple(track)), SegmentRules(RECORDED, 160))
    assert refused.field == field
    assert message in str(refused)
