"""A checkpoint's config.json determines its family, and may contain a vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest

from stretto.engine.reply_rules import SegmentRules
from stretto.entry_points import FAMILIES, OWN, installed
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.csm.family import CsmVocabulary
from stretto.families.opuslm.family import TAILS
from stretto.families.tiny.family import TINY
from stretto.family.plugin import FamilyPlugin, family_at, plugin, plugins, read_family
from stretto.family.pronunciations import spelling
from stretto.records.sampling import SegmentSampling
from stretto.streams.layout import Segment
from stretto_contract.languages import CODES
from stretto_contract.pronunciation import DictionaryEntry
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM

SMALL = {"bagpiper": SMALL_BAGPIPER, "opuslm": SMALL_OPUSLM}


@pytest.mark.parametrize("name", [each.name for each in installed(FAMILIES) if each.distribution == OWN])
def test_every_built_in_family_is_consistent(name: str) -> None:
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


@pytest.mark.parametrize("name", [each.name for each in installed(FAMILIES)])
def test_voice_details_belong_to_voices_and_have_known_codes(name: str) -> None:
    """A family whose voices come with the release has none by default."""
    family = read_family({"speech_family": name})
    assert not family.voices or family.voice_details.keys() <= {*family.voices}
    for details in family.voice_details.values():
        assert details.language.partition("-")[0] in ("", *CODES)
        assert details.gender in ("", "female", "male")


def test_vocabulary_intervals_match_the_published_ones() -> None:
    bagpiper = read_family({"speech_family": "bagpiper"}).layout
    assert bagpiper.audio[7] == range(152192 + 7 * 1025 + 1, 160392)
    assert bagpiper.extra[7] == (152192 + 7 * 1025,)
    opuslm = read_family({"speech_family": "opuslm"}).layout
    assert opuslm.audio[0] == range(256, 5256)
    assert opuslm.audio[8] == range(5256 + 7 * 1024, 13448)
    assert (opuslm.codebook_size, bagpiper.codebook_size) == (1024, 1024)


def test_sampling_defaults_match_the_published_ones() -> None:
    """Bagpiper's defaults come from its authors' serving code, OpusLM's from ESPnet's `conf/decode_general.yaml`.

    The `maxlen` of 2048 in that file includes the eight rows in which delayed streams end.
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


def test_vita_audio_intervals_and_defaults_match_the_published_ones() -> None:
    """They come from its tokenizer, `generation_config.json` and scripts, which sample only to read text aloud."""
    family = read_family({"speech_family": "vita_audio"})
    assert family.layout.audio == (range(151685, 151685 + 16384),)
    assert (family.layout.vocab_size, family.end_of_reply, family.drawn_ends) == (168072, 151645, (151645, 151643))
    drawn = {task.name: task.sampling.text.temperature for task in family.tasks}
    assert drawn == {"tts": 0.7, "dialogue": 0.0, "asr": 0.0, "chat": 0.0}
    for task in family.tasks:
        text = task.sampling.text
        assert (text.top_k, text.top_p, text.max_rows, task.sampling.repetition_penalty) == (20, 0.8, 8192, 1.05)
    assert (family.frame_rate, family.max_model_len, family.drawing.penalized) == (12.5, 32768, "all")


def test_family_limits_match_the_published_ones() -> None:
    for name, longest in (("bagpiper", 32768), ("opuslm", 8192), ("opuslm_dialogue", 8192)):
        family = read_family({"speech_family": name})
        assert (family.max_audio_s, family.max_model_len, family.frame_rate) == (30.0, longest, 50.0)


@pytest.mark.parametrize("name", SMALL)
def test_vocabulary_round_trips_through_config_json(name: str, tmp_path: Path) -> None:
    record = SMALL[name].to_record()
    (tmp_path / "config.json").write_text(json.dumps({"speech_family": name, "speech_vocabulary": record}))
    assert family_at(tmp_path).layout == SMALL[name].layout


def test_null_of_an_earlier_version_is_ignored_in_a_depth_transformer() -> None:
    record = CsmVocabulary().to_record()
    old = record | {"depth": record["depth"] | {"gpt2_activation": None}}
    assert CsmVocabulary.from_record(json.loads(json.dumps(old))) == CsmVocabulary()
    with pytest.raises(InvalidRequest, match=r"speech_vocabulary\.depth\.gpt2_activation: .* got an unknown key"):
        CsmVocabulary.from_record(record | {"depth": record["depth"] | {"gpt2_activation": "silu"}})


@pytest.mark.parametrize("tail", ["padded", "sampled"])
def test_opuslm_checkpoint_can_set_the_audio_tail(tail: str) -> None:
    record = SMALL_OPUSLM.to_record() | {"tail": tail}
    assert read_family({"speech_family": "opuslm_dialogue", "speech_vocabulary": record}).tail is TAILS[tail]


def register(folder: Path, value: str) -> None:
    """Register an installed package `brook` whose family names refer to `value`."""
    (folder / "brook-1.dist-info").mkdir(parents=True)
    (folder / "brook-1.dist-info" / "entry_points.txt").write_text(f"[stretto.families]\nbrook = {value}\n")


def test_an_installed_package_registers_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "brook_speech:PLUGIN")
    code = "from stretto.family.plugin import FamilyPlugin, lazy\n"
    code += 'PLUGIN = FamilyPlugin("brook", lazy("stretto.families.tiny.family:build"))\n'
    (tmp_path / "brook_speech.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_family({"speech_family": "brook"}) is TINY
    found = plugin("brook")
    assert isinstance(found, FamilyPlugin)
    assert (found.name, found.open_template, found.convert) == ("brook", None, None)


def test_a_package_may_register_a_family_without_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "stretto.families.tiny.family:TINY")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_family({"speech_family": "brook"}) is TINY
    assert plugin("brook").open_template is None


def test_error_names_invalid_family_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "stretto.families.tiny.family:PAD")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"family brook: expected a FamilyPlugin as .*PAD, got int"):
        read_family({"speech_family": "brook"})


def test_unknown_family_error_lists_the_installed_families(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"unknown family 'brook'; installed: .*bagpiper, .*csm, .*tiny"):
        read_family({"speech_family": "brook"})
    monkeypatch.setattr("stretto.entry_points.installed", lambda group: [])
    with pytest.raises(CheckpointError, match=r"unknown family 'csm'; installed: none; .*scripts/setup.sh"):
        read_family({"speech_family": "csm"})


def test_unimportable_registered_family_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, "brook_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="brook: cannot import brook_that_is_not_there"):
        read_family({"speech_family": "brook"})


def test_missing_plugin_does_not_hide_other_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register(tmp_path, "brook_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    found = {each.name for each in plugins()}
    assert {"tiny", "csm"} <= found
    assert "brook" not in found
    assert "brook: cannot import brook_that_is_not_there" in caplog.text


def test_plugin_import_failure_does_not_hide_other_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register(tmp_path, "dry_brook:PLUGIN")
    (tmp_path / "dry_brook.py").write_text("raise RuntimeError('no water')")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"tiny", "csm"} <= {each.name for each in plugins()}
    assert "brook: cannot import dry_brook:PLUGIN: RuntimeError('no water')" in caplog.text
    with pytest.raises(CheckpointError, match="no water"):
        read_family({"speech_family": "brook"})


def test_plugin_cannot_replace_a_built_in_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brook-1.dist-info").mkdir()
    (tmp_path / "brook-1.dist-info" / "entry_points.txt").write_text("[stretto.families]\ntiny = brook\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_family({"speech_family": "tiny"}) is TINY


OUTSIDE = ("checkpoint.evil:TINY", "evil:TINY", "checkpoint.evil", "evil", "a:b:c", "../evil", "\ud800")


@pytest.mark.parametrize("name", OUTSIDE)
def test_checkpoint_family_name_cannot_import_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are importable, because Triton adds the checkpoint's parent folder to the path."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    code = "import pathlib\npathlib.Path('was-run').touch()\nfrom stretto.families.tiny.family import TINY\n"
    (checkpoint / "evil.py").write_text(code)
    (checkpoint / "config.json").write_text(json.dumps({"speech_family": name}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(checkpoint)
    with pytest.raises(CheckpointError, match=r"config\.json: speech_family: unknown family"):
        family_at(checkpoint)
    assert not Path("was-run").exists()


@pytest.mark.parametrize("key", ["auto_map", "speculators_config", "attn_implementation"])
def test_checkpoint_config_with_code_loading_keys_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"speech_family": "tiny", key: {"AutoConfig": "evil.Config"}}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: expected a checkpoint without this key"):
        family_at(tmp_path)
    inner = {"speech_family": "tiny", key: None, "audio_config": {"layers": [{key: "evil/kernel"}]}}
    (tmp_path / "config.json").write_text(json.dumps(inner))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: expected a checkpoint without this key"):
        family_at(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected the family's name in speech_family, got None"),
        ({"speech_family": "huge"}, "unknown family 'huge'; installed:"),
        (
            {"speech_family": "bagpiper", "speech_vocabulary": {"text": 3}},
            r"speech_vocabulary\.text: expected a valid array, got 3",
        ),
        (
            {"speech_family": "opuslm", "speech_vocabulary": {"ssl": [0, (1 << 20) + 1]}},
            "speech_vocabulary: expected numbers of at most 1048576, got 1048577",
        ),
        ({"speech_family": "opuslm", "speech_vocabulary": {"modalities": {}}}, "invalid vocabulary for opuslm"),
        (
            {"speech_family": "opuslm", "speech_vocabulary": SMALL_OPUSLM.to_record() | {"tail": "free"}},
            "speech_vocabulary: expected a valid value, got an error: tail must be one of padded, sampled, got 'free'",
        ),
        (
            {"speech_family": "csm", "speech_vocabulary": {"num_codebooks": 64.5}},
            r"speech_vocabulary\.num_codebooks: expected a valid integer, got 64\.5",
        ),
        (
            {"speech_family": "qwen3_tts", "speech_vocabulary": {"takes_instructions": "no"}},
            r"speech_vocabulary\.takes_instructions: expected a valid boolean, got 'no'",
        ),
    ],
)
def test_missing_and_unknown_families_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_family(config)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        family_at(tmp_path)


def test_family_without_phonemes_refuses_an_entry_with_them() -> None:
    with pytest.raises(ValueError, match=", got "):
        spelling(DictionaryEntry("a", "HH", "cmu"), TINY)
