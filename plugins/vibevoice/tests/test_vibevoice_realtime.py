"""VibeVoice Realtime equals the authors' code, whole or word by word; both kinds of voice files are read safely."""

import asyncio
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from plugins.vibevoice.lab.random_vibevoice_realtime import (
    NUM_NUMBERS,
    PICKLED,
    VOICES,
    save_voice,
    shapes,
    tensors,
    voice,
    write_release,
)
from plugins.vibevoice.lab.vibevoice_realtime_replies import STRIDE
from plugins.vibevoice.tests.vibevoice_realtime_release import prompts_of, stored
from stretto.codecs.base import Window
from stretto.engine.feeds import TextFeed
from stretto.engine.prompt_checks import max_words
from stretto.engine.reply_rules import SegmentRules, TextUpdate
from stretto.engine.tracks import ENDLESS
from stretto.errors import InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import stream0_rows
from stretto.family.text import load_text_codec
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_contract.voice_details import VoiceDetails
from stretto_vibevoice.codec import load
from stretto_vibevoice.vibevoice_realtime import PLUGIN
from stretto_vibevoice.vibevoice_realtime.convert import DROPPED
from stretto_vibevoice.vibevoice_realtime.family import (
    END_OF_TEXT,
    NUM_FRAMES,
    NUM_WORDS,
    TextWindows,
    VibeVoiceRealtimeVocabulary,
    VoiceRows,
)
from tests.engine.nudges import assert_latents_near
from tests.family_suite import FamilySuite
from tests.tiers import SYNC_BY_DAY

if TYPE_CHECKING:
    from tests.engine.harness import Answer, Engine

NUM_PUBLISHED = 1_018_000_000  # parameters, from the size of the published file
TEXT = "  “The garden door” isn’t open,\n\n is it?  Close it, please.  \n"
SPOKEN = '"The garden door" isn\'t open,\n\n is it?  Close it, please.\n'
# Prompts in chunks, and memory for little more than one guided reply: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 6,
    "num_gpu_blocks_override": 7,
    "max_model_len": 128,
}
MAX_ROWS = 60
# Number of rows of a reply when it is cancelled, number of tokens that it has, and True if its next row is a token.
CANCELLED = ((3, 17, True), (8, 17, False), (12, 17, True), (18, 17, False), (14, 8, True))
PCM_TOLERANCE = 1e-4
SCALES = ("model.speech_scaling_factor", "model.speech_bias_factor")


def write(folder: Path, size: str) -> list[str]:
    return ["vibevoice-realtime", "--model", str(write_release(folder / "release", size))]


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    details = {"en-ann_woman": VoiceDetails("en", "female"), "en-bob_man": VoiceDetails("en", "male")}
    assert release.family.voices == tuple(details)
    assert release.family.voice_details == details
    first = release.family.end_of_reply + 17
    return {
        "the second voice": (
            asked(TEXT, voice="EN-BOB_man"),
            stream0_rows(release.family.layout, [*range(first, first + 21)]),
        )
    }


def assert_near_authors(release: SmallRelease, name: str, rows: np.ndarray) -> None:
    """Assert that latents and decoded samples are near those of the authors' code."""
    expected = {key: stored()[f"{release.size}.{name}.{key}"] for key in ("latents", "nudged", "pcm", "num_frames")}
    is_frame = rows[:, 0] == release.family.layout.audio[0].start
    assert rows[-1, 0] == release.family.end_of_reply
    assert is_frame.sum() == expected["num_frames"] == len(expected["latents"])
    words = rows[is_frame, 1 : 2 + NUM_NUMBERS].astype(np.int32)
    assert_latents_near(latents_of(words[:, :NUM_NUMBERS]), expected["latents"], expected["nudged"])
    codec = load(release.checkpoint)
    window = Window(torch.from_numpy(words.T[None]).long(), 0, 0, torch.zeros(1).long(), codec.initial_state(1))
    samples = codec.decode(window)[0].numpy()[0, ::STRIDE]
    np.testing.assert_allclose(samples, expected["pcm"].clip(-1, 1), rtol=0, atol=PCM_TOLERANCE)


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    return {
        name: ExpectedReply(prompt, partial(assert_near_authors, release, name))
        for name, prompt in prompts_of(release.checkpoint, MAX_ROWS).items()
    }


def edit_voice(edit: Callable[[dict[str, Any]], object], is_pickled: bool) -> Callable[[Path], None]:
    """Return an edit of the folder of voices that writes one of them again, with other tensors."""

    def write_voice(folder: Path) -> None:
        (folder / f"{PICKLED}.pt").unlink()
        content = voice(PICKLED)
        edit(content)
        if is_pickled:
            save_voice(folder / f"{PICKLED}.pt", content)
        else:
            save_file(content, folder / f"{PICKLED}.safetensors")

    return write_voice


VOICE_EDITS: tuple[tuple[Callable[[dict[str, Any]], object], str], ...] = (
    (lambda t: t.pop("tts_lm_value_1"), "tts_lm_value_1: expected [1, 2, 15, 32], got none"),
    (lambda t: t.update(lm_key_0=torch.zeros(1, 2, 0, 32)), "lm_key_0: expected [1, 2, n, 32] with n in"),
    (lambda t: t.update(lm_key_1=torch.zeros(1, 2, 7, 32)), "lm: expected 1 layers, got more"),
    (lambda t: t["lm_key_0"].fill_(torch.nan), "lm_key_0: expected floating-point numbers"),
    (lambda t: t.update(neg_tts_lm_key_0=torch.zeros(1, 2, 2, 32)), "neg_tts_lm"),
)


class TestVibeVoiceRealtime(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        unneeded_tensors=(*SCALES, *(name for name in tensors() if name.startswith(DROPPED))),
        refused_configs=[
            ({"model_type": "vibevoice"}, "model_type: expected 'vibevoice_streaming', got 'vibevoice'"),
            (
                {"tts_backbone_num_hidden_layers": 3},
                "tts_backbone_num_hidden_layers: expected an integer in [1, 2], got 3",
            ),
            ({"decoder_config.use_sliding_window": True}, "decoder_config: expected full attention and silu"),
            ({"acoustic_tokenizer_config.encoder_ratios": [2, 5]}, "acoustic_tokenizer_config"),
            (
                {"diffusion_head_config.prediction_type": "epsilon"},
                "diffusion_head_config.prediction_type: expected 'v_prediction', got 'epsilon'",
            ),
            ({"diffusion_head_config.latent_size": 9}, "diffusion_head_config.latent_size: expected 8, got 9"),
        ],
        refused_edits=[
            (
                "release/model.safetensors",
                lambda t: t[SCALES[0]].fill_(float("nan")),
                "model.speech_scaling_factor: expected a finite number",
            ),
            (
                "release",
                lambda folder: (folder / "voices").rename(folder / "elsewhere"),
                "voices: expected 1 to 64 voices, NAME.pt or NAME.safetensors, got 0",
            ),
            *(
                ("release/voices", edit_voice(edit, is_pickled), message)
                for edit, message in VOICE_EDITS
                for is_pickled in (True, False)
            ),
        ],
        prompts=prompts,
        refused_inputs=[
            (asked(" \n "), "text: expected text of at least one character"),
            (asked("a" * 300), "text: expected at most 225 tokens, got 301 tokens"),
        ],
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
        conformance={"num_prompts": 40},
        conforming_size="small",
        conforms_by_night=True,
    )

    def test_both_kinds_of_voices_are_written(self, release: SmallRelease) -> None:
        vocabulary = VibeVoiceRealtimeVocabulary.from_record(config_at(release.checkpoint)[VOCABULARY])
        written = release.weights
        first = 0
        text = 0
        for index, (name, (num_text_rows, num_rows)) in enumerate(VOICES.items()):
            rows_of_voice = vocabulary.voices[index]
            tensors_of_voice = voice(name)
            assert rows_of_voice == VoiceRows(name.lower(), num_text_rows, num_rows)
            for layer, table in enumerate(written["voice_rows"]):
                for network, rows in (("tts_lm", slice(first, first + num_rows)), ("neg_tts_lm", [first + num_rows])):
                    for column, kind in enumerate(("key", "value")):
                        expected = tensors_of_voice[f"{network}_{kind}_{layer}"][0].transpose(0, 1).flatten(1)
                        assert table[rows, column].equal(expected)
            keys = tensors_of_voice["lm_key_0"][0].transpose(0, 1)
            assert written["text.voices"][0, text : text + num_text_rows, 0].equal(keys)
            assert written["first_states"][index].equal(tensors_of_voice["neg_tts_lm_hidden"][0, 0])
            first += num_rows + 1
            text += num_text_rows

    @pytest.mark.filterwarnings("error:Detected pickle protocol")
    def test_voices_cannot_execute_code(self, copied: SmallRelease, tmp_path: Path) -> None:
        """Neither a plain pickle nor a file of torch with other classes is unpickled."""
        touched = tmp_path / "touched"
        path = copied.folder / "release" / "voices" / f"{PICKLED}.pt"
        path.unlink()
        torch.save({"lm": Attack(touched)}, path)
        copied.assert_refused(f"{PICKLED}.pt: expected a voice of VibeVoice Realtime")
        path.write_bytes(pickle.dumps({"lm": Attack(touched)}, protocol=2))  # as torch writes
        copied.assert_refused(f"{PICKLED}.pt: expected a voice of VibeVoice Realtime")
        assert not touched.exists()

    def test_text_is_that_of_the_authors_processor(self, release: SmallRelease) -> None:
        """White space around the text is removed, and a line end follows it, which is part of the last token."""
        ids = spoken_ids(release)
        assert ids[-1] == 256
        assert release.preprocessor.prepare(RawRequest(text=TEXT)).track == (*ids, END_OF_TEXT)

    @pytest.mark.parametrize("size", [1, 2, 7, 100])
    def test_streamed_text_gives_the_same_tokens(self, release: SmallRelease, size: int) -> None:
        codec = load_text_codec(release.family, release.checkpoint)
        assert codec.stream is not None
        stream = codec.stream()
        streamed = list[int]()
        for start in range(0, len(TEXT), size):
            ids, stream = stream.after(TEXT[start : start + size], is_last=start + size >= len(TEXT))
            streamed += ids
        assert streamed == spoken_ids(release)

    @pytest.mark.parametrize("length", [512, 300, *range(87, 99), 40])
    def test_streamed_text_without_room_for_its_frames_is_refused(self, release: SmallRelease, length: int) -> None:
        """The frames after each window count, and those after the last one."""
        rules = SegmentRules(release.family, length)
        opened = release.preprocessor.prepare(RawRequest(text="a", options='{"text_mode": "open"}'))
        prompt = replace(opened, track=(7,))
        room = length - len(prompt.rows) - 1  # without the row that ends the reply
        most = max(number for number in range(length) if number + -(-number // NUM_WORDS) * NUM_FRAMES <= room)
        engine: Any = SimpleNamespace(has=lambda name: False)

        async def write() -> None:
            track = rules.track(len(prompt.rows), prompt.track, is_open=True)
            feed = TextFeed(engine, "u", track, max_words(prompt, rules) - 1)
            feed.write([7] * (most - 1), is_last=False)
            with pytest.raises(InvalidRequest, match="text: expected at most 0 more tokens, got 1 tokens"):
                feed.write([7, END_OF_TEXT], is_last=True)
            feed.write([END_OF_TEXT], is_last=True)

        asyncio.run(write())

    @pytest.mark.engine
    @pytest.mark.parametrize("is_async", SYNC_BY_DAY)
    def test_text_word_by_word_and_cancelled_replies(self, release: SmallRelease, is_async: bool) -> None:
        """A reply leaves in its first or second window of text or frames, or while it waits for the rest of one."""
        from tests.engine.harness import Answer, Engine

        prompts = prompts_of(release.checkpoint, MAX_ROWS)
        audio = replace(prompts["7"].sampling.audio, min_rows=MAX_ROWS)
        whole = replace(prompts["7"], sampling=replace(prompts["7"].sampling, audio=audio))
        windows = release.family.track
        assert isinstance(windows, TextWindows)
        with Engine(release.checkpoint, **TIGHT, async_scheduling=is_async) as engine:
            alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
            streamed = speak_word_by_word(engine, prompts, 3)
            assert {name: answer.rows for name, answer in streamed.items()} == alone
            for num_rows, number, is_word in CANCELLED:
                is_open = number < len(whole.track) - 1
                leaving = replace(whole, track=whole.track[:number], is_open=True) if is_open else whole
                assert windows.is_word(num_rows, ENDLESS if is_open else number) == is_word
                answers = {name: Answer() for name in ("leaving", *prompts)}
                for name, prompt in {"leaving": leaving, **prompts}.items():
                    engine.add(name, prompt)
                while engine.is_busy():
                    engine._step(answers)
                    request = engine.scheduler.requests.get("leaving")
                    if request is not None and request.num_output_tokens == num_rows and not is_open:
                        engine.core.abort_requests(["leaving"])
                if is_open:
                    assert engine.scheduler.requests["leaving"].num_output_tokens == num_rows
                    engine.core.abort_requests(["leaving"])
                assert answers.pop("leaving").trailer is None
                assert {name: answer.rows for name, answer in answers.items()} == alone
                assert engine.is_clean()


def spoken_ids(release: SmallRelease) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(release.checkpoint / "tokenizer.json")).encode(SPOKEN).ids
    return ids


def speak_word_by_word(engine: "Engine", prompts: dict[str, Prompt], seed: int) -> "dict[str, Answer]":
    """Return replies to texts whose tokens arrive in parts at random steps."""
    from tests.engine.harness import Answer, update_request

    random = np.random.default_rng(seed)
    answers = {name: Answer() for name in prompts}
    unsent = {name: list(prompt.track) for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        engine.add(name, replace(prompt, track=(), is_open=True))
    for _ in range(2000):
        for name in [name for name in unsent if random.random() < 0.3]:
            number = int(random.integers(0, 4))
            sent = unsent[name][:number]
            unsent[name] = unsent[name][number:]
            update = TextUpdate(name, np.array(sent, np.int32), is_last=not unsent[name])
            engine.core.add_request(update_request(update))
            if not unsent[name]:
                del unsent[name]
        if engine.is_busy():
            engine._step(answers)
        elif not unsent:
            return answers
    raise AssertionError("it does not come to an end")


class Attack:
    """Runs a command if it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_published_sizes() -> None:
    """The numbers of parameters are those of the published files: 2,036 MB of weights, and 2 heads of 64."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes("published").items()}
    assert sizes["model.language_model.embed_tokens.weight"] == 151936 * 896
    assert abs(sum(sizes.values()) - NUM_PUBLISHED) < 0.01 * NUM_PUBLISHED
    assert len(tensors()) == len(shapes())
