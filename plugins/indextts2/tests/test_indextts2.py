"""IndexTTS-2 equals the authors' loop: prompts with a voice, an emotion and positions, and codes of replies."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from plugins.indextts2.lab.indextts2_replies import voice
from plugins.indextts2.lab.random_acoustics import HEARING
from plugins.indextts2.lab.random_gpt import CONFIG, NUM_CODES, NUM_VOICE_ROWS
from plugins.indextts2.lab.random_indextts2 import write_release
from stretto.errors import InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import InputAudio, Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_indextts2 import PLUGIN
from stretto_indextts2.convert import Config, plan, vocabulary_of
from stretto_indextts2.family import IndexVocabulary
from stretto_indextts2.prompt import emotion_weights
from stretto_indextts2.text import tokenizable
from tests.family_suite import FamilySuite
from tests.recordings import speech

FIXTURE: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "replies.json").read_text())
RATE = 22_050
PUBLISHED: dict[str, Any] = CONFIG["gpt"] | {
    "model_dim": 1280,
    "heads": 20,
    "layers": 24,
    "max_mel_tokens": 1815,
    "max_text_tokens": 600,
    "number_text_tokens": 12000,
    "number_mel_codes": 8194,
    "start_mel_token": 8192,
    "stop_mel_token": 8193,
}


def write(folder: Path, size: str) -> list[str]:
    return ["indextts2", "--model", str(write_release(folder / "release"))]


def vocabulary_at(release: SmallRelease) -> IndexVocabulary:
    return IndexVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])


def rows_of(vocabulary: IndexVocabulary, ids: list[int]) -> np.ndarray:
    """Return the rows of a prompt with these ids of text, int32 [P, 2]."""
    text = [0, *ids, 1]
    pad = vocabulary.pad
    stream0 = [vocabulary.codes[1]] * NUM_VOICE_ROWS + [vocabulary.speeds[1], vocabulary.speeds[0], *text]
    positions = [pad] * (NUM_VOICE_ROWS + 2) + [vocabulary.text_positions[number] for number in range(len(text))]
    return np.array([[*stream0, vocabulary.start], [*positions, vocabulary.code_positions[0]]], np.int32).T


def prompts(release: SmallRelease) -> Mapping[str, tuple[Mapping[str, Any], np.ndarray]]:
    expected = dict[str, tuple[Mapping[str, Any], np.ndarray]]()
    for text in ("Hello, you!", "\u6700zhong4\u8981"):
        ids = release.preprocessor.template._tokenizer.encode(tokenizable(text, "text"))  # type: ignore[attr-defined]
        rows = rows_of(vocabulary_at(release), ids)
        expected[text] = (asked(text, pcm=recording(), sample_rate=RATE), rows)
    return expected


def recording(seconds: float = 2.0) -> np.ndarray:
    return speech(int(seconds * RATE), RATE)


def with_mood(mood: np.ndarray, **options: Any) -> dict[str, Any]:
    """Return the inputs of a request with a recording of a voice, and one of an emotion beside the text."""
    turns = ({"role": "system", "audio": "audio"}, {"role": "user", "audio": "audio", "text": "Hello."})
    files = [io.BytesIO(), io.BytesIO()]
    for file, samples in zip(files, (recording(), mood), strict=True):
        soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return talk(*turns, **options) | {"audio": tuple(file.getvalue() for file in files)}


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    vocabulary = vocabulary_at(release)
    first = vocabulary.codes.start
    expected = dict[str, ExpectedReply]()
    for number, reply in enumerate(FIXTURE["replies"]):
        latents, emotion = voice(reply["seed"])
        audio = SegmentSampling(reply["temperature"], reply["top_k"], reply["top_p"], max_rows=FIXTURE["num_codes"])
        sampling = SamplingConfig(
            SegmentSampling(temperature=0.0), audio, repetition_penalty=reply["penalty"], seed=reply["seed"]
        )
        vectors = (latents + emotion).numpy()
        audios = (InputAudio(0, len(vectors), vectors),)
        prompt = Prompt("tts", rows_of(vocabulary, reply["ids"]), sampling, audios=audios)
        codes = [code for code in reply["codes"] if code != NUM_CODES + 1]
        expected[f"r{number}"] = ExpectedReply(prompt, [[first + code] for code in codes] + [[vocabulary.end]])
    return expected


def published() -> PublishedSizes:
    gpt = Config.read(CONFIG | {"gpt": PUBLISHED, "semantic_codec": {"codebook_size": 8192}}).gpt
    parts = plan(gpt)
    shapes = {name: tuple(shape) for planned in parts.values() for name, shape in planned.others.items()}
    shapes |= {name: planned.stored for name, planned in parts.items()}
    assert vocabulary_of(gpt, 32) == IndexVocabulary()
    written = {
        "transformer.wte.weight": (IndexVocabulary().layout.vocab_size, 1280),
        "audio_head.weight": (8194, 1280),
        "transformer.ln_f.1.bias": (1280,),
        "transformer.h.23.mlp.c_fc.weight": (1280, 5120),
    }
    return PublishedSizes(shapes, parts, written, 24 * 12 + 4 + 3)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


class TestIndexTts2(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        config="release/config.yaml",
        weights="release/gpt.pth",
        may_be_sharded=False,
        # Errors of tensors in HEARING, which define sizes, do not list all missing tensors.
        unneeded_tensors=("text_head.weight", "text_head.bias", *HEARING),
        same_configs=({"qwen_emo_path": "elsewhere"},),
        refused_configs=(
            ({"version": 2.5}, "version: expected a number in [2.0, 2.1), got 2.5"),
            ({"gpt.heads": 3}, "gpt.heads: expected a divisor of 128 (model_dim), got 3"),
            ({"gpt.stop_mel_token": 64}, "gpt.stop_mel_token: expected 65, got 64"),
            ({"semantic_codec.codebook_size": 63}, "semantic_codec.codebook_size: expected 64"),
            ({"s2mel.preprocess_params.sr": 24000}, "s2mel.preprocess_params.sr: expected 22050, got 24000"),
            ({"emo_num": [1]}, "emo_num: expected a list of 8 to 8 values"),
        ),
        refused_edits=(
            ("release", remove("bpe.model"), "bpe.model"),
            ("release", remove("config.yaml"), "config.yaml"),
            ("release", lambda folder: (folder / "bpe.model").rename(folder / "config.yaml"), "config.yaml"),
        ),
        published=published,
        prompts=prompts,
        has_usual_requests=False,
        refused_inputs=(
            (asked("Hello."), "messages: expected a system turn with audio"),
            (
                asked("a" * 151, pcm=recording(), sample_rate=RATE),
                "messages[1].text: expected at most 150 characters, got 151 characters",
            ),
            (
                asked("a b " * 35, pcm=recording(), sample_rate=RATE),
                "messages[1].text: expected text of at most 64 tokens, got 70 tokens",
            ),
            (asked("Hi.", pcm=recording(0.3), sample_rate=RATE), "messages[0].audio: expected"),
        ),
        replies=replies,
        engine={"max_model_len": 112},
        tight={"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9, "max_model_len": 112},
    )

    def test_emotions_change_the_vectors_and_reach_the_decoder(self, release: SmallRelease) -> None:
        """The decoder gets the ids of the text and the rows that the language model reads."""

        def prepared(turn: Mapping[str, Any] | None = None, **options: Any) -> Prompt:
            inputs: dict[str, Any] = asked("Hello.", pcm=recording(), sample_rate=RATE, **options)
            return release.preprocessor.prepare(RawRequest(**inputs))

        plain = prepared()
        happy = prepared(instruct="happy 0.6, Calm 0.2")
        assert plain.sound is not None
        assert happy.sound is not None
        text, rows = happy.sound.prompt
        assert text.tolist() == plain.rows[NUM_VOICE_ROWS + 3 : -2, 0].tolist()
        np.testing.assert_array_equal(rows.reshape(NUM_VOICE_ROWS, -1), happy.audios[0].features)
        assert np.abs(happy.audios[0].features - plain.audios[0].features).max() > 1e-3
        difference = happy.audios[0].features - plain.audios[0].features
        np.testing.assert_allclose(difference, np.broadcast_to(difference[:1], difference.shape), atol=1e-5)

    def test_recording_beside_the_text_gives_the_emotion(self, release: SmallRelease) -> None:
        """`exaggeration` moves the vector from that of the voice to that of the recording, and beyond."""
        mood = np.concatenate([recording(1.0)[::-1], recording(1.0)])

        def rows(**options: Any) -> np.ndarray:
            (vectors,) = release.preprocessor.prepare(RawRequest(**with_mood(mood, **options))).audios
            return vectors.features

        plain = release.preprocessor.prepare(RawRequest(**asked("Hello.", pcm=recording(), sample_rate=RATE)))
        moved = {alpha: rows(exaggeration=alpha) - plain.audios[0].features for alpha in (0.0, 0.5, 1.0)}
        np.testing.assert_allclose(moved[0.0], 0, atol=1e-6)
        assert np.abs(moved[1.0]).max() > 1e-3
        np.testing.assert_allclose(2 * moved[0.5], moved[1.0], atol=1e-5)
        np.testing.assert_allclose(rows(), moved[1.0] + plain.audios[0].features, atol=1e-6)
        fields = with_mood(mood)
        system, user = json.loads(fields["messages"])
        turns = [system, {"role": "user", "text": user["text"]}, {"role": "user", "audio": "audio"}]
        apart = release.preprocessor.prepare(RawRequest(**fields | {"messages": json.dumps(turns)}))
        np.testing.assert_allclose(apart.audios[0].features, rows(), atol=1e-6)

    @pytest.mark.parametrize(
        ("seconds", "options", "message"),
        [
            (2.0, {"instruct": "happy 0.5"}, "options.instruct: expected no value beside a recording of the emotion"),
            (0.3, {}, "messages[1].audio: expected"),
        ],
    )
    def test_other_recordings_of_emotions_are_refused(
        self, release: SmallRelease, seconds: float, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            release.preprocessor.prepare(RawRequest(**with_mood(recording(seconds), **options)))
        assert str(refusal.value).startswith(message), str(refusal.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"instruct": "cheerfully"}, "options.instruct: expected emotions with weights, such as 'happy 0.6"),
            ({"instruct": "happy 0.6, sad 0.5"}, "options.instruct: expected weights of at most 1 together, got 1.1"),
            ({"exaggeration": 0.5}, "options.exaggeration: expected no value without a recording of the emotion"),
        ],
    )
    def test_other_emotions_are_refused(self, release: SmallRelease, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            release.preprocessor.prepare(RawRequest(**asked("Hi.", pcm=recording(), sample_rate=RATE, **options)))
        assert str(refusal.value).startswith(message), str(refusal.value)


def test_weights_of_emotions_have_the_order_of_the_authors() -> None:
    assert emotion_weights("calm 1").tolist() == [0] * 7 + [1]
    assert emotion_weights("happy 0.07, surprised 0.27, calm 0.66").any()  # 1 together, and more in float32
    np.testing.assert_allclose(emotion_weights(" sad .25,HAPPY 0.5 , sad 0.25"), [0.5, 0, 0.5, 0, 0, 0, 0, 0])
