"""Options override the defaults of a task."""

import json
from dataclasses import replace

import pytest

from stretto.errors import InvalidRequest
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary, qwen3_tts
from stretto.families.tiny.family import TINY
from stretto.families.vita_audio.family import VitaVocabulary, vita_audio
from stretto.family.base import DrawRules
from stretto.family.prompting import PLAIN, Manner
from stretto.family.served import SpokenTask
from stretto.preprocessing.options import Options, read_options
from stretto.records.sampling import CodeSampling, LatentSampling
from tests.small_vocabularies import BAGPIPER, CSM
from tests.speech_families import GUIDED_LATENTS, LATENTS

VITA = vita_audio(VitaVocabulary())
TTS, ASR = TINY.task("tts"), TINY.task("asr")
FRAME_RATE = 25.0


def read(options: dict, task=TTS) -> Options:
    return read_options(json.dumps(options), TINY, task, FRAME_RATE)


def test_missing_options_give_the_task_defaults() -> None:
    assert read_options(None, TINY, TTS, FRAME_RATE) == read({}) == Options(TTS.sampling, "heart", drops_silence=True)
    assert read({}, ASR) == Options(ASR.sampling, None)


def test_every_option_is_read_into_its_field() -> None:
    values = {
        "seed": 7,
        "guidance": {"scale": 3, "policy": "always"},
        "script_temperature": 0.5,
        "voice": "heart",
        "adapter": "narrator",
        "text": {"temperature": 0.1, "max_rows": 100},
        "audio": {"min_rows": 2, "top_p": 0.9, "min_p": 0.1, "ras_window": 7, "ras_max_repeats": 3},
        "temperature": 1.5,
        "top_k": 5,
    }
    options = read_options(json.dumps(values), replace(TINY, drawing=DrawRules()), TTS, FRAME_RATE)
    assert (options.voice, options.adapter) == ("heart", "narrator")
    assert options.sampling == replace(
        TTS.sampling,
        seed=7,
        guidance_scale=3.0,
        script_temperature=0.5,
        min_p=0.1,
        ras_window=7,
        ras_max_repeats=3,
        text=replace(TTS.sampling.text, temperature=0.1, max_rows=100),
        audio=replace(TTS.sampling.audio, min_rows=2, top_p=0.9, temperature=1.5, top_k=5),
    )


def test_script_temperature_is_refused_by_families_without_a_script() -> None:
    refusal = r"options.script_temperature: expected 1.0 \(csm does not support this temperature\), got 0.5"
    with pytest.raises(InvalidRequest, match=refusal):
        read_options('{"script_temperature": 0.5}', CSM, CSM.tasks[0], FRAME_RATE)


def test_min_p_is_refused_by_families_that_sample_no_id_of_the_first_stream() -> None:
    with pytest.raises(InvalidRequest, match=r"options.audio.min_p: expected 0.0 \(tiny samples no id .*\), got 0.1"):
        read({"audio": {"min_p": 0.1}})


def test_guidance_of_spoken_text_is_refused_by_the_options() -> None:
    spoken = SpokenTask(**vars(ASR))
    with pytest.raises(InvalidRequest, match=r"options.guidance_scale: expected 1.0, because tiny has no guidance"):
        read_options('{"guidance_scale": 2}', replace(TINY, guided_streams=()), spoken, FRAME_RATE)


def test_depth_sampling_defaults_to_stream_0_options() -> None:
    task = CSM.tasks[0]

    def depth(text: str) -> CodeSampling | None:
        return read_options(text, CSM, task, FRAME_RATE).sampling.depth

    assert depth('{"temperature": 0.4}') is None
    assert depth('{"temperature": 0.4, "depth": {"top_p": 0.5}}') == CodeSampling(0.4, 50, 0.5)
    assert depth('{"depth": {"temperature": 0}}') == CodeSampling(0.0, 50, 1.0)
    with pytest.raises(InvalidRequest, match=r"options.depth: .*no depth transformer"):
        read({"depth": {"top_k": 1}})


def test_latent_steps_are_limited_by_the_family() -> None:
    (task,) = LATENTS.tasks

    def steps(text: str) -> LatentSampling | None:
        return read_options(text, LATENTS, task, FRAME_RATE).sampling.latents

    assert steps("{}") == steps('{"latents": {}}') == LatentSampling(steps=2, tail_rows=3)
    assert steps('{"latents": {"steps": 4}}') == LatentSampling(steps=4, tail_rows=3)
    for number in (5, 5000):
        with pytest.raises(
            InvalidRequest, match=rf"options.latents.steps: expected an integer in \[1, 4\], got {number}"
        ):
            steps(f'{{"latents": {{"steps": {number}}}}}')
    with pytest.raises(InvalidRequest, match=r"options.latents: expected no value \(frames of this model are codes"):
        read({"latents": {"steps": 1}})


@pytest.mark.parametrize(
    "text", ['{"guidance_scale": 3}', '{"guidance": {"scale": 3, "policy": "always"}}', '{"guidance": {"scale": 3}}']
)
def test_guidance_in_the_latent_head_makes_no_cfg_pair(text: str) -> None:
    (task,) = GUIDED_LATENTS.tasks
    sampling = read_options(text, GUIDED_LATENTS, task, FRAME_RATE).sampling
    assert sampling.latents == LatentSampling(steps=2, tail_rows=1, guidance_scale=3.0)
    assert not sampling.has_pair
    for policy in ('{"policy": "adaptive"}', '{"policy": "until_s", "until_s": 2}'):
        with pytest.raises(InvalidRequest, match=r"options.guidance.policy: expected 'always'"):
            read_options(f'{{"guidance": {policy}}}', GUIDED_LATENTS, task, FRAME_RATE)


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        ({}, (2.0, "always", None)),
        ({"scale": 3, "policy": "always"}, (3.0, "always", None)),
        ({"policy": "adaptive"}, (2.0, "adaptive", None)),
        ({"scale": 1.5, "policy": "until_s", "until_s": 2}, (1.5, "until_s", 2.0)),
    ],
)
def test_guidance_scale_and_policy_are_parsed(guidance: dict, expected: tuple) -> None:
    sampling = read({"guidance": guidance}).sampling
    assert (sampling.guidance_scale, sampling.policy, sampling.guided_until_s) == expected


def test_top_level_sampling_applies_to_the_last_segment() -> None:
    assert read({"temperature": 0.3}, ASR).sampling.text.temperature == 0.3
    assert read({"temperature": 0.3}).sampling.text == TTS.sampling.text


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"audio": {"temperature": 0.5}}])
def test_error_about_sampling_names_the_option_as_the_request_does(options: dict) -> None:
    (task,) = GUIDED_LATENTS.tasks
    name = "options.audio.temperature" if "audio" in options else "options.temperature"
    with pytest.raises(InvalidRequest) as caught:
        read_options(json.dumps(options), GUIDED_LATENTS, task, FRAME_RATE)
    assert str(caught.value) == f"{name}: expected 1.0 (the noise of this model has a fixed variance), got 0.5"


def test_error_about_a_segment_without_shorthands_keeps_its_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^options.text.temperature: expected 0 or a number in"):
        read({"temperature": 0.5, "text": {"temperature": 1e-9}})
    with pytest.raises(InvalidRequest, match=r"^options.temperature: expected 0 or a number in"):
        read({"temperature": 1e-9}, ASR)


@pytest.mark.parametrize(("seconds", "rows"), [(0.04, 1), (0.28, 7), (1, 25), (9.99, 249), (20, 500)])
def test_max_audio_s_is_converted_to_rows(seconds: float, rows: int) -> None:
    assert read({"max_audio_s": seconds}).sampling.audio.max_rows == rows


@pytest.mark.parametrize(
    ("seconds", "max_rows", "min_rows"), [(0.02, 8, 8), (0.5, 32, 32), (1, 57, 50), (40.82, 2048, 50)]
)
def test_max_rows_include_rows_for_the_remaining_delay(seconds: float, max_rows: int, min_rows: int) -> None:
    options = json.dumps({"max_audio_s": seconds})
    audio = read_options(options, BAGPIPER, BAGPIPER.task("tts"), 50.0).sampling.audio
    assert (audio.max_rows, audio.min_rows) == (max_rows, min_rows)


def test_max_rows_too_small_for_a_frame_is_refused() -> None:
    task = BAGPIPER.task("tts")
    assert read_options('{"audio": {"max_rows": 8}}', BAGPIPER, task, 50.0).sampling.audio.max_rows == 8
    with pytest.raises(
        InvalidRequest, match=r"audio\.max_rows: expected at least 8 rows, because 7 of them start no frame, got 7"
    ):
        read_options('{"audio": {"max_rows": 7}}', BAGPIPER, task, 50.0)
    assert read({"audio": {"max_rows": 1}}).sampling.audio.max_rows == 1


def test_max_rows_overrides_family_but_not_requested_min_rows() -> None:
    task = BAGPIPER.task("tts")
    audio = read_options('{"audio": {"max_rows": 20}}', BAGPIPER, task, 50.0).sampling.audio
    assert (audio.max_rows, audio.min_rows) == (20, 20)
    with pytest.raises(InvalidRequest, match=r"audio\.min_rows: expected an integer in \[0, 57\], got 60"):
        read_options('{"max_audio_s": 1, "audio": {"min_rows": 60}}', BAGPIPER, task, 50.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "options: expected a JSON object, got []"),
        ({"sede": 1}, "options.sede: expected one of seed, "),
        ({"output": {"ring": "stretto_ring"}}, "options.output.ring: expected an object of name and memory"),
        ({"x" * 500: 1}, "options.x"),
        ({"language": "German"}, "options.language: expected one of auto, english, en, got 'German'"),
        (
            {"guidance": {"policy": "until_s"}},
            "options.guidance.until_s: expected a number of seconds, because policy is 'until_s'",
        ),
        ({"guidance": {"until_s": 2}}, "options.guidance.until_s: expected no value under policy 'always', got 2"),
        ({"guidance": {"size": 2}}, "options.guidance.size: expected one of policy, scale, until_s"),
        ({"guidance": {}, "guidance_scale": 2}, "options.guidance: expected either"),
        ({"voice": "bob"}, "options.voice: expected one of heart, got 'bob'"),
        ({"voice": ["heart"]}, "options.voice: expected one of heart, got ['heart']"),
        ({"max_audio_s": 33}, "options.max_audio_s: expected a number of seconds in [0.04, 32], got 33"),
        ({"max_audio_s": 0}, "options.max_audio_s: expected a number of seconds in [0.04, 32], got 0"),
        ({"audio": {"min_rows": 900}}, "options.audio.min_rows: expected an integer in [0, 800], got 900"),
        ({"audio": {"max_rows": 2049}}, "options.audio.max_rows: expected at most 2048 rows, got 2049"),
        ({"adapter": "\ud800"}, r"options.adapter: expected text without lone surrogates, got '\ud800'"),
        ({"temperature": 1, "audio": {"temperature": 1}}, "options.temperature: expected either"),
        ({"pronunciations": 3}, "options.pronunciations: expected an object of words and their spellings, got 3"),
        (
            {"pronunciations": {"a b": {"phonemes": "S", "alphabet": "cmu"}}},
            "options.pronunciations.a b: expected a spelling (this model reads no phonemes), got cmu",
        ),
    ],
)
def test_invalid_option_error_names_the_option(options: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(options)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["voice", "guidance_scale", "max_audio_s", "audio", "script_temperature"])
def test_text_only_task_refuses_speech_options(key: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"options\.{key}: expected no value \(task 'asr' does not speak"):
        read({key: 1}, ASR)


def test_language_of_a_recording_is_read_by_tasks_that_write_it_down() -> None:
    assert read({"language": "English"}, ASR).manner.language == "english"
    assert read({"language": "auto"}, ASR).manner.language is None
    with pytest.raises(InvalidRequest, match=r"options\.language: expected one of auto, english, en, got 'klingon'"):
        read({"language": "klingon"}, ASR)
    with pytest.raises(InvalidRequest, match=r"options\.language: expected no value \(this model does not accept a"):
        read_options('{"language": "english"}', VITA, VITA.task("asr"), FRAME_RATE)
    with pytest.raises(InvalidRequest, match=r"options\.language: expected no value \(task 'chat' does not speak"):
        read_options('{"language": "english"}', VITA, VITA.task("chat"), FRAME_RATE)


def test_text_options_are_refused_if_the_model_generates_no_text() -> None:
    refusal = r"options\.text: expected no value \(the model generates no text in task 'tts'\), got \{'top_k': 3\}"
    with pytest.raises(InvalidRequest, match=refusal):
        read_options('{"text": {"top_k": 3}}', CSM, CSM.task("tts"), FRAME_RATE)
    spoken = SpokenTask(**vars(ASR))  # by a second model
    assert read({"text": {"top_k": 3}}, spoken).sampling.text.top_k == 3


@pytest.mark.parametrize("language", ["English", "english", "en", "EN", "Auto"])
def test_bundled_voice_supports_english(language: str) -> None:
    assert read({"language": language}).voice == "heart"


def test_transliterate_requires_a_single_script_family() -> None:
    assert read({"transliterate": True}).manner == Manner(transliterates=True)
    assert read({"transliterate": False}).manner == PLAIN
    refusal = r"options.transliterate: expected false or no value \(this model supports every script\), got true"
    with pytest.raises(InvalidRequest, match=refusal):
        read_options('{"transliterate": true}', VITA, VITA.task("tts"), 12.5)


@pytest.mark.parametrize(
    ("options", "is_dropped"),
    [
        ({}, True),
        ({"seed": 3, "max_audio_s": 2.0, "voice": "eric", "chunking": {"first_frames": 1}}, True),
        ({"audio": {"min_rows": 3}, "depth": {}, "leading_silence": False}, True),
        ({"leading_silence": True}, False),
        ({"adapter": "narrator"}, False),
        ({"audio": {"temperature": 0.5}}, False),
        ({"top_k": 3}, False),
        ({"depth": {"top_p": 0.5}}, False),
        ({"repetition_penalty": 1.2}, False),
    ],
)
def test_silence_is_dropped_from_usual_replies(options: dict, is_dropped: bool) -> None:
    """Only seeds, lengths, the voice and chunk sizes may differ from the defaults."""
    family = qwen3_tts(Qwen3TtsVocabulary())
    assert read_options(json.dumps(options), family, family.task("tts"), 12.5).drops_silence is is_dropped


@pytest.mark.parametrize(("name", "value"), [("piece", 2), ("exaggeration", 1.5)])
def test_manner_of_speaking_requires_family_support(name: str, value: float) -> None:
    family = replace(TINY, options=(name, *TINY.options))
    assert read_options(json.dumps({name: value}), family, TTS, FRAME_RATE).manner == Manner(**{name: value})
    with pytest.raises(InvalidRequest, match=rf"options\.{name}: expected no value \(this model "):
        read({name: value})


def test_schedule_option_is_a_name_or_numbers() -> None:
    def schedule(text: str) -> object:
        return read_options(f'{{"schedule": {text}}}', VITA, VITA.task("tts"), 12.5).sampling.schedule

    assert (schedule('"turbo"'), schedule("[1, 13]"), schedule("[2, 3, 9, 0]")) == ("turbo", (1, 13), (2, 3, 9, 0))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("fast", "options.schedule: expected one of balance, vanilla, boost, turbo, or numbers, got 'fast'"),
        ([], "options.schedule: expected at most 16 pairs of numbers [M, m, M, m, …], got 0 numbers"),
        ([1, 4, 3], "options.schedule: expected at most 16 pairs of numbers [M, m, M, m, …], got 3 numbers"),
        ([1, 1] * 17, "options.schedule: expected at most 16 pairs of numbers [M, m, M, m, …], got 34 numbers"),
        ([1, 4, 0, 2], "options.schedule[2]: expected an integer in [1, 8192], got 0"),
        ([1, 8193], "options.schedule[1]: expected an integer in [0, 8192], got 8193"),
        ([True, 4], "options.schedule[0]: expected an integer in [1, 8192], got True"),
        ([1, [4]], "options.schedule[1]: expected an integer in [0, 8192], got [4]"),
    ],
)
def test_invalid_schedule_error_names_the_option(schedule: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_options(json.dumps({"schedule": schedule}), VITA, VITA.task("tts"), 12.5)
    assert str(caught.value) == message


def test_model_without_mtp_modules_refuses_a_schedule() -> None:
    with pytest.raises(
        InvalidRequest, match=r"options\.schedule: expected no value \(this model generates one row per step\), got"
    ):
        read({"schedule": [1, 4]})
