"""Qwen3-TTS prompts equal the authors' inputs to the talker."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from transformers import Qwen2Tokenizer

from stretto.encoders.x_vector import FOLDER, SpeakerConfig, SpeakerEncoder, load_speaker_encoder
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.qwen3_tts.prompt import ClonedVoice, RowWriter
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from tests.codecs.qwen3_12hz.reference import speech
from tests.fakes import FrameCounter
from tests.published_qwen3_tts import CASES, REFERENCES, Checkpoint, fixture


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return {kind: Checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in CASES}


def prepare(checkpoint: Checkpoint, text: str = "hello world", **options: object) -> Prompt:
    preprocessor = Preprocessor(checkpoint.folder, FrameCounter(1920, 4, 32))
    return preprocessor.prepare(RawRequest(text=text, options=json.dumps(options)))


def test_prompt_rows_match_the_authors_in_every_case(checkpoints: dict[str, Checkpoint]) -> None:
    """Cases cover languages, a dialect, speakers, instructions, cloned voices, and words before and within frames."""
    largest = 0.0
    for kind, checkpoint in checkpoints.items():
        for name, (prompt, case) in checkpoint.cases().items():
            rows = checkpoint.embedded(prompt)
            assert rows.shape == case.prompt.shape, (kind, name)
            largest = max(largest, float(np.abs(rows - case.prompt).max()))
            assert len(prompt.track) == words_left(name)
    assert largest <= 1e-5


def words_left(name: str) -> int:
    """Return how many text ids, including the end, a case adds to the reply's frames."""
    case, _, mode = name.partition("/")
    if mode == "whole":
        return 0
    if case not in REFERENCES:
        return len(fixture()["words"])
    said = len(fixture()["reference_words"]) + len(fixture()["words"]) + 1
    return max(0, said - 1 - fixture()[REFERENCES[case]].shape[1])


@pytest.mark.parametrize("kind", ["custom_voice", "voice_design", "base"])
def test_silent_frames_are_known_for_speakers_without_instructions(
    checkpoints: dict[str, Checkpoint], kind: str, tmp_path: Path
) -> None:
    """In this checkpoint, replies of speakers begin with a silent frame."""
    shutil.copytree(checkpoints[kind].folder, tmp_path / "checkpoint")
    record = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    record["speech_vocabulary"]["silent_frames"] = 1
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(record))
    preprocessor = Preprocessor(tmp_path / "checkpoint", FrameCounter(1920, 4, 32, 24_000))

    def silent_frames(**options: object) -> int:
        if kind == "base":
            prompt = clone(checkpoints[kind], speech(1.0), None, preprocessor, **options)
        else:
            prompt = preprocessor.prepare(RawRequest(text="hello world", options=json.dumps(options)))
        return prompt.delivery.chunking.silent_frames

    number = int(kind == "custom_voice")
    assert [silent_frames(text_mode=mode) for mode in ("whole", "streaming", "open")] == [number] * 3
    assert silent_frames(leading_silence=True) == silent_frames(top_k=3) == 0
    if kind != "base":
        assert silent_frames(instruct="tell") == 0


def test_qwen3_tts_prompt_has_voice_language_and_instruction(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["custom_voice"]
    plain = prepare(checkpoint)
    assert np.array_equal(plain.rows, prepare(checkpoint, voice="Ryan", language="Auto", text_mode="whole").rows)
    known, text = checkpoint.vocabulary, checkpoint.vocabulary.text
    words = TextTokenizer.at(checkpoint.folder).encode("hello world")
    asked = prepare(checkpoint, voice="ERIC", language="English", instruct="tell", text_mode="streaming")
    assert asked.rows[0].tolist()[:1] == [text.im_start]
    assert known.num_text_ids + known.speakers["eric"] in asked.rows[:, 0]
    assert known.num_text_ids + known.languages["english"] in asked.rows[:, 0]
    assert asked.rows[-1, -1] == words[0]
    assert asked.track == (*words[1:], text.eos)
    designed = prepare(checkpoints["voice_design"], instruct="a low voice")
    assert len(designed.rows) > len(plain.rows)


@pytest.mark.parametrize("blank", ["", "\n", "\n\n\n", " \r\n", "\t\n \n  "])
def test_leading_line_breaks_are_removed(checkpoints: dict[str, Checkpoint], blank: str) -> None:
    """The authors' code removes three tokens from `assistant\\n` and the text: line ends would merge with the third."""
    kept = blank.rpartition("\n")[2]  # indentation is none of them
    asked, plain = (
        prepare(checkpoints["custom_voice"], begin + "hello\n world\n", instruct=begin + "tell")
        for begin in (blank, kept)
    )
    assert np.array_equal(asked.rows, plain.rows)
    assert asked.track == plain.track


def test_leading_newlines_of_reference_text_are_stripped(checkpoints: dict[str, Checkpoint]) -> None:
    plain, asked = (clone(checkpoints["base"], speech(1.0), said, text_mode="whole") for said in ("mind", "\n\nmind"))
    assert np.array_equal(asked.rows, plain.rows)


def test_text_tokenization_matches_qwen_2(checkpoints: dict[str, Checkpoint]) -> None:
    """As in transformers' class, merges across a case change apply, and names of special tokens are text."""
    folder = checkpoints["custom_voice"].folder
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    theirs = Qwen2Tokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)
    ours = TextTokenizer.at(folder)
    for text in ("aBaB hello  world\n\n", "d'État cafe\u0301 कि 123", "x  \n y\tz", "Ünïcode, «quotes» — 7½"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.tokens[ours.encode("aB")[0]] == "aB"
    assert len(ours.encode("<|im_start|>")) > 1


def clone(
    checkpoint: Checkpoint,
    pcm: np.ndarray,
    said: str | None = None,
    preprocessor: Preprocessor | None = None,
    **more: object,
) -> Prompt:
    """Return a prompt for "hello world" in the voice of `pcm`, whose transcript is the argument after it."""
    preprocessor = preprocessor or Preprocessor(checkpoint.folder, FrameCounter(1920, 4, 32, 24_000))
    system = {"role": "system", "audio": "pcm_in"} | ({} if said is None else {"text": said})
    messages = json.dumps([system, {"role": "user", "text": "hello world"}])
    return preprocessor.prepare(RawRequest(messages=messages, pcm_in=pcm, sample_rate=24_000, options=json.dumps(more)))


def test_system_turn_sets_the_cloned_voice(
    checkpoints: dict[str, Checkpoint],
) -> None:
    checkpoint, pcm = checkpoints["base"], speech(1.0)
    encoder = load_speaker_encoder(checkpoint.folder)
    assert encoder is not None
    x_vector = encoder.encode(pcm)
    words = TextTokenizer.at(checkpoint.folder).encode("hello world")
    alone = clone(checkpoint, pcm)
    (heard,) = alone.audios
    assert np.array_equal(heard.features, x_vector[None])
    writer = RowWriter(checkpoint.family, checkpoint.vocabulary)
    voice = ClonedVoice(x_vector)
    expected = writer.prompt(writer.head([], voice, None), words, True, voice)
    assert np.array_equal(alone.rows, expected.rows)
    assert alone.track == expected.track == (*words[1:], checkpoint.vocabulary.text.eos)
    assert alone.num_reference_rows == 0
    assert len(clone(checkpoint, pcm, text_mode="whole").track) == 0
    voice = ClonedVoice(
        x_vector, tuple(TextTokenizer.at(checkpoint.folder).encode("mind")), FrameCounter(1920, 4, 32).encode(pcm)
    )
    expected = writer.prompt(writer.head([], voice, "english"), words, False, voice)
    asked = clone(checkpoint, pcm, "mind", language="English", text_mode="whole")
    assert np.array_equal(asked.rows, expected.rows)
    assert asked.num_reference_rows == 12
    with pytest.raises(InvalidRequest, match=r"^options.text_mode: expected whole or streaming, .*, got open"):
        clone(checkpoint, pcm, "mind", text_mode="open")
    assert clone(checkpoint, pcm, text_mode="open").is_open


def test_each_voice_is_encoded_once(checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = list[float]()
    encode = SpeakerEncoder.encode

    def counted(self: SpeakerEncoder, pcm: np.ndarray) -> np.ndarray:
        encoded.append(len(pcm) / 24_000)
        return encode(self, pcm)

    monkeypatch.setattr(SpeakerEncoder, "encode", counted)
    checkpoint = checkpoints["base"]
    preprocessor = Preprocessor(checkpoint.folder, FrameCounter(1920, 4, 32, 24_000))
    first = clone(checkpoint, speech(1.0), "mind", preprocessor)
    second = clone(checkpoint, speech(1.2), "mind", preprocessor)
    again = clone(checkpoint, speech(1.0), None, preprocessor)
    assert encoded == [1.0, 1.2]
    assert np.array_equal(first.audios[0].features, again.audios[0].features)
    assert not np.array_equal(first.audios[0].features, second.audios[0].features)


def test_a_checkpoint_without_its_speaker_encoder_is_refused(tmp_path: Path) -> None:
    folder = Checkpoint(tmp_path, "base").folder
    config = json.loads((folder / FOLDER / "config.json").read_text())
    network = SpeakerEncoder(SpeakerConfig.from_record(config | {"enc_dim": 8})).network
    save_file(network.state_dict(), folder / FOLDER / "model.safetensors")
    (folder / FOLDER / "config.json").write_text(json.dumps(config | {"enc_dim": 8}))
    codec = FrameCounter(1920, 4, 32, 24_000)
    with pytest.raises(CheckpointError, match="expected a speaker encoder of the model's width, 96, got 8"):
        Preprocessor(folder, codec)
    shutil.rmtree(folder / FOLDER)
    with pytest.raises(CheckpointError, match="expected a speaker encoder, because the model clones voices"):
        Preprocessor(folder, codec)
