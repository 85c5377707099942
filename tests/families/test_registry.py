"""A checkpoint's config.json names its family, and may bring a vocabulary of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from stretto.engine.request.rules import SegmentRules
from stretto.errors import CheckpointError
from stretto.families.opuslm.family import TAILS
from stretto.families.registry import FOLDERS, family_at, read_family
from stretto.families.tiny.family import TINY
from stretto.records.sampling import SegmentSampling
from stretto.streams.segment import Segment
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM

SMALL = {"bagpiper": SMALL_BAGPIPER, "opuslm": SMALL_OPUSLM}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_family_is_sound(name: str) -> None:
    family = read_family({"speech_family": name})
    layout, audio = family.layout, list(family.layout.audio)
    assert family.name == name
    assert len({*family.layout.codebook_streams}) == layout.num_codebooks
    for task in family.tasks:
        for ids in task.text:
            assert 0 <= ids.start < ids.stop <= layout.vocab_size
            both = any(Segment.INTERLEAVED in each.segments for each in family.tasks)
            assert both or not any(set(ids) & set(each) for each in audio), "text and audio do not overlap"
    assert family.frame_rate > 0
    assert all(token < layout.vocab_size for token in family.transition)
    for task in family.tasks:
        closings = SegmentRules(family, 1024).closings(task)
        assert all(token < layout.vocab_size for token in (*closings, family.end_of_audio, family.end_of_reply))


def test_the_published_intervals() -> None:
    bagpiper = read_family({"speech_family": "bagpiper"}).layout
    assert bagpiper.audio[7] == range(152192 + 7 * 1025 + 1, 160392)
    assert bagpiper.extra[7] == (152192 + 7 * 1025,)
    opuslm = read_family({"speech_family": "opuslm"}).layout
    assert opuslm.audio[0] == range(256, 5256)
    assert opuslm.audio[8] == range(5256 + 7 * 1024, 13448)
    assert (opuslm.codebook_size, bagpiper.codebook_size) == (1024, 1024)


def test_the_published_defaults_of_sampling() -> None:
    """Of the authors' serving code for Bagpiper, of `conf/decode_general.yaml` in ESPnet for OpusLM.

    That file's `maxlen`, 2048, counts the eight rows in which the streams that trail end.
    """
    bagpiper = read_family({"speech_family": "bagpiper"})
    for name in ("tts", "generate", "speak"):
        sampling = bagpiper.task(name).sampling
        assert sampling.text == SegmentSampling(temperature=0.6, top_k=20, min_rows=1, max_rows=8192)
        assert sampling.audio == SegmentSampling(temperature=0.8, top_k=20, min_rows=50, max_rows=2048)
        assert sampling.guidance_scale == 3.0
    assert {bagpiper.task(name).sampling.guidance_scale for name in ("understand", "chat")} == {1.0}
    for name in ("opuslm", "opuslm_dialogue"):
        family = read_family({"speech_family": name})
        for task in family.tasks:
            assert task.sampling.text == SegmentSampling(temperature=0.0, min_rows=1, max_rows=2040)
            assert task.sampling.audio == SegmentSampling(temperature=0.8, top_k=30, min_rows=3, max_rows=2040)
            assert task.sampling.guidance_scale == 1.0
        assert family.guided_streams == ()


def test_vita_audio_s_intervals_and_defaults_are_the_published_ones() -> None:
    """Of its tokenizer, its `generation_config.json` and its scripts, which draw greedily but where they read aloud."""
    family = read_family({"speech_family": "vita_audio"})
    assert family.layout.audio == (range(151685, 151685 + 16384),)
    assert (family.layout.vocab_size, family.end_of_reply, family.drawn_ends) == (168072, 151645, (151645, 151643))
    drawn = {task.name: task.sampling.text.temperature for task in family.tasks}
    assert drawn == {"tts": 0.7, "dialogue": 0.0, "asr": 0.0, "chat": 0.0}
    for task in family.tasks:
        text = task.sampling.text
        assert (text.top_k, text.top_p, text.max_rows, task.sampling.repetition_penalty) == (20, 0.8, 8192, 1.05)
    assert (family.frame_rate, family.max_model_len, family.penalized) == (12.5, 32768, "all")


def test_the_published_limits() -> None:
    for name, longest in (("bagpiper", 32768), ("opuslm", 8192), ("opuslm_dialogue", 8192)):
        family = read_family({"speech_family": name})
        assert (family.max_audio_s, family.max_model_len, family.frame_rate) == (30.0, longest, 50.0)


@pytest.mark.parametrize("name", SMALL)
def test_a_vocabulary_survives_config_json(name: str, tmp_path: Path) -> None:
    record = SMALL[name].to_record()
    (tmp_path / "config.json").write_text(json.dumps({"speech_family": name, "speech_vocabulary": record}))
    assert family_at(tmp_path).layout == SMALL[name].layout


@pytest.mark.parametrize("tail", ["padded", "sampled"])
def test_opuslm_s_checkpoint_may_say_how_its_audio_closes(tail: str) -> None:
    record = SMALL_OPUSLM.to_record() | {"tail": tail}
    assert read_family({"speech_family": "opuslm_dialogue", "speech_vocabulary": record}).tail is TAILS[tail]


def test_a_family_outside_the_registry_is_named_by_its_module() -> None:
    assert read_family({"speech_family": "stretto.families.tiny.family:TINY"}) is TINY
    assert TINY.task("tts").segments == (Segment.TEXT, Segment.AUDIO)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected the family's name in speech_family, got None"),
        ({"speech_family": "huge"}, "unknown family 'huge'; known:"),
        ({"speech_family": "bagpiper", "speech_vocabulary": {"text": 3}}, "not a vocabulary of bagpiper"),
        ({"speech_family": "opuslm", "speech_vocabulary": {"tasks": {}}}, "not a vocabulary of opuslm"),
        (
            {"speech_family": "opuslm", "speech_vocabulary": SMALL_OPUSLM.to_record() | {"tail": "free"}},
            "not a vocabulary of opuslm: ValueError.*tail must be one of padded, sampled, got 'free'",
        ),
    ],
)
def test_what_names_no_family_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_family(config)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        family_at(tmp_path)
