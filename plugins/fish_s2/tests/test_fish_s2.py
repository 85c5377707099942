"""Fish Audio S2 equals a slow reference that reads the published layout; prompts are tokenised with special tokens."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as BpeTokenizer

from plugins.fish_s2.lab.random_fish_s2 import IDS, KINDS, command, config, model_shapes, model_tensors, write_release
from plugins.fish_s2.lab.random_fish_s2_codec import write_codec
from plugins.fish_s2.tests.fish_s2_release import FishReference, absolute, reference_prompt
from plugins.fish_s2.tests.small_families import SMALL_FISH_S2
from stretto.cpu_backend import int8
from stretto.cpu_backend.int8 import has_int8
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto.weights.loading import shapes_read
from stretto_fish_s2 import PLUGIN
from stretto_fish_s2.convert import CODES, plan, read_config
from stretto_fish_s2.family import FishVocabulary, fish_s2
from tests.family_suite import FamilySuite
from tests.tiers import by_night

LAYERS = {"intermediate_size": 9728, "n_head": 32, "n_local_heads": 8, "head_dim": 128, "dim": 2560}
NUM_CODEBOOKS, NUM_CODES, *_ = KINDS["small"]
ENGINE = {"max_model_len": 160}
MAX_FRAMES = 40
# Temperature, top-k, top-p and seed.
DRAWN = ((1.0, 30, 0.9, 1), (1.4, 6, 0.95, 2), (0.7, 30, 0.8, 3), (0.0, 30, 0.9, 4))

# Parts of prompts, and texts of the requests that have them.
SYSTEM = "<|im_start|>system\n"
USER = "<|im_start|>user\n"
END = "<|im_end|>\n"
REPLY = "<|im_start|>assistant\n<|voice|>"
PLAIN = f"{SYSTEM}convert the provided text to speech{END}{USER}"
VOICE = f"{SYSTEM}convert the provided text to speech reference to the following:\n\nText:\n"
TEXT = "The garden door is open."


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published() -> PublishedSizes:
    """The published config.json has 358 tensors in its index, and the ids of these tokens."""
    record = config("deep")
    record["text_config"] |= LAYERS | {"n_layer": 36, "vocab_size": 155776, "max_seq_len": 32768}
    record["audio_decoder_config"] |= LAYERS | {"n_layer": 4, "text_dim": 2560, "vocab_size": 4096}
    record |= {"eos_token_id": 151645, "pad_token_id": 151669, "audio_pad_token_id": 151677}
    record |= {"semantic_start_token_id": 151678, "semantic_end_token_id": 155773}
    ids = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|pad|>": 151669, "<|voice|>": 151673}
    ids |= {f"<|semantic:{code}|>": 151678 + code for code in range(4096)}
    tokenizer = Tokenizer(Path(), 155774, {token_id: name for name, token_id in ids.items()})
    layers, vocabulary = read_config(record, tokenizer)
    assert vocabulary == FishVocabulary()
    assert fish_s2(vocabulary) == fish_s2(FishVocabulary())
    parts = plan(layers, vocabulary)
    shapes = model_shapes(record)
    assert len(shapes) == 358
    assert shapes == shapes_read(parts)
    return PublishedSizes(
        shapes=shapes,
        plan=parts,
        written={
            "model.embed_tokens.weight": (155776 + 9 * 4096, 2560),
            "depth.first_head": (4097, 2560),
            "depth.heads": (9, 4096, 2560),
            "depth.embed": (9 * 4096, 2560),
        },
        num_written=36 * 11 + 4 * 9 + 2 + 4,
    )


def codes(number: int, num_codebooks: int = NUM_CODEBOOKS, first: int = 0) -> list[list[int]]:
    """Return codes of a recording, [K, T]."""
    size = num_codebooks, 3 + number
    found: list[list[int]] = np.random.default_rng(number).integers(first, first + NUM_CODES, size).tolist()
    return found


def rows_of(release: SmallRelease, *parts: str | list[list[int]]) -> np.ndarray:
    """Return the rows of parts, which are texts with special tokens, or codes."""
    tokenizer = BpeTokenizer.from_file(str(release.checkpoint / "tokenizer.json"))
    rows = list[list[int]]()
    for part in parts:
        if isinstance(part, str):
            ids = tokenizer.encode(part, add_special_tokens=False).ids
            rows += [[token, *[0] * release.family.num_codebooks] for token in ids]
        else:
            rows += [[IDS["<|semantic:0|>"] + frame[0], *frame] for frame in zip(*part, strict=True)]
    return absolute(np.array(rows), release.family)


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def conversation(release: SmallRelease, words: str) -> dict[str, Any]:
    """Return the inputs for a text after one turn, in a voice with these words."""
    number = release.family.num_codebooks
    voice = turn("system", text=words, codes=codes(1, number))
    earlier = turn("user", text="Before."), turn("assistant", codes=codes(2, number))
    return talk(voice, *earlier, turn("user", text=TEXT))


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    rows = partial(rows_of, release)
    one = "<|speaker:0|>Hello."
    two = "<|speaker:0|>Hello.\n<|speaker:1|>Hi."
    number = release.family.num_codebooks
    heard = "\n\nSpeech:\n", codes(1, number), f"{END}{USER}Before.{END}{REPLY}", codes(2, number)
    last = f"{END}{USER}{TEXT}{END}{REPLY}"
    spoken = "  <|speaker:0|> Hello there. <|speaker:12|>Hi! \n\n<|speaker:0|>Bye.\n"
    lines = "<|speaker:0|> Hello there.\n<|speaker:12|>Hi!\n<|speaker:0|>Bye."
    return {
        "text": (asked(TEXT), rows(f"{PLAIN}{TEXT}{END}{REPLY}")),
        "one voice": (conversation(release, "Hello."), rows(f"{VOICE}{one}", *heard, last)),
        "two voices": (conversation(release, two), rows(f"{VOICE}{two}", *heard, last)),
        "a line for each speaker": (asked(spoken), rows(f"{PLAIN}{lines}{END}{REPLY}")),
    }


def reference_replies(release: SmallRelease) -> tuple[dict[str, ExpectedReply], int]:
    """Return the reference's replies by name, and how many semantic tokens it sampled again."""
    reference = FishReference(release.size, release.family)
    expected = dict[str, ExpectedReply]()
    num_again = 0
    usual = release.family.tasks[0].sampling
    for number in range(3):
        rows = reference_prompt(release.size, number)
        for temperature, top_k, top_p, seed in DRAWN:
            audio = replace(usual.audio, temperature=temperature, top_k=top_k, top_p=top_p, max_rows=MAX_FRAMES)
            prompt = Prompt("tts", absolute(rows, release.family), replace(usual, audio=audio, seed=seed))
            reply = reference.reply(rows, prompt.sampling)
            expected[f"{number}.{seed}"] = ExpectedReply(prompt, reply.rows)
            num_again += reply.num_again
    return expected, num_again


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    expected, num_again = reference_replies(release)
    assert num_again > 0
    assert {len(reply.rows) <= MAX_FRAMES for reply in expected.values()} == {True, False}, "some end, some are cut"
    return expected


def spoken(*turns: dict[str, Any]) -> dict[str, Any]:
    return talk(*turns, turn("user", text=TEXT))


def swap_last_tokens(record: dict[str, Any]) -> None:
    names = {"<|semantic:62|>": "<|semantic:63|>", "<|semantic:63|>": "<|semantic:62|>"}
    for token in record["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])


class TestFishS2(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        refused_configs=[
            ({"model_type": "dual_ar"}, "model_type: expected 'fish_qwen3_omni', got 'dual_ar'"),
            ({"text_config": None}, "text_config: expected an object, got None"),
            ({"text_config.n_head": 3}, "text_config.n_head: expected a multiple of 2 (n_local_heads), got 3"),
            ({"text_config.n_layer": 3}, "missing: text_model.model.layers.2"),
            ({"text_config.vocab_size": 300}, "expected a tokenizer of at most 300 tokens"),
            ({"audio_decoder_config.dim": 32}, "audio_decoder_config.dim: expected 64, got 32"),
            ({"audio_decoder_config.text_dim": 32}, "audio_decoder_config.text_dim: expected 64, got 32"),
            ({"audio_decoder_config.rope_base": 10000}, "rope_base: expected 1000000.0, got 10000.0"),
            ({"audio_decoder_config.norm_eps": 1e-5}, "audio_decoder_config.norm_eps: expected 1e-06, got 1e-05"),
            (
                {"audio_decoder_config.num_codebooks": 4},
                "expected 4 codebooks, the first of 64 codes, as in config.json, got 5 and 64",
            ),
            ({"audio_decoder_config.vocab_size": 70}, "without <|semantic:69|>"),
            ({"eos_token_id": 9}, "eos_token_id: expected 306 (<|im_end|>), got 9"),
            ({"semantic_end_token_id": 9}, "semantic_end_token_id: expected 373 (<|semantic:63|>), got 9"),
        ],
        refused_edits=[
            ("release/tokenizer.json", swap_last_tokens, "expected <|semantic:63|> with id 373, got 372"),
        ],
        needed_tokens=["<|voice|>", "<|semantic:63|>"],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(""), "text: expected text with at least one non-space character, got ''"),
            (asked("Oh, <|speaker:0|>Hi"), "text: expected no words before the first tag <|speaker:N|>, got 'Oh,'"),
            (asked("<|Speaker:0|>Hi"), "text: expected speakers as <|speaker:N|>"),
            (
                asked("<speaker 0>Hi"),
                "text: expected speakers as <|speaker:N|>, where N is a number, got '<speaker 0>'",
            ),
            (
                spoken(turn("system", codes=codes(0))),
                "messages[0].codes: expected the audio of a voice together with its words, got audio only",
            ),
            (
                spoken(turn("system", text="Hello.")),
                "messages[0].text: expected the audio of a voice together with its words, got text only",
            ),
            (
                spoken(turn("system", text="Hello.", codes=codes(0, NUM_CODEBOOKS - 1))),
                "messages[0].codes: expected 5 streams, got 4",
            ),
            (
                spoken(turn("system", text="Hello.", codes=codes(0, first=NUM_CODES))),
                "messages[0].codes[0]: expected codes in [0, 64)",
            ),
            (
                spoken(turn("user", text="a")),
                "messages[1].text: expected an assistant turn with the speech of the text before",
            ),
            (
                spoken(turn("user", text=TEXT), turn("assistant", text="a")),
                "messages[1].text: expected user turns with text, each followed by",
            ),
            (asked("a", guidance={"scale": 2}), "options.guidance"),
        ],
        markers=["<|voice|>", "<|semantic:3|>"],
        refused_markers=["<|voice|>", "<|semantic:3|>"],
        replies=replies,
        engine=ENGINE,
        tight={"max_num_batched_tokens": 48, "num_gpu_blocks_override": 8},
        conformance={"vocabulary": SMALL_FISH_S2.to_record(), "num_prompts": 16},
        conforms_by_night=True,
    )

    def test_frames_are_folded_into_the_table(self, release: SmallRelease) -> None:
        published = {name: torch.from_numpy(tensor) for name, tensor in model_tensors().items()}
        written = release.weights
        text = published["text_model.model.embeddings.weight"]
        codes = published[CODES].view(5, 64, 64)
        first = IDS["<|semantic:0|>"]
        table = written["model.embed_tokens.weight"]
        assert table[:first].equal(text[:first])
        assert table[first + 64 : len(text)].equal(text[first + 64 :])
        frames = torch.cat([text[first : first + 64] + codes[0], *codes[1:]]) / math.sqrt(6)  # of 5 codes and a token
        torch.testing.assert_close(torch.cat([table[first : first + 64], table[len(text) :]]), frames)
        assert written["depth.first_head"][:-1].equal(text[first : first + 64])
        assert written["depth.first_head"][-1].equal(text[IDS["<|im_end|>"]])
        assert written["depth.embed"].equal(torch.cat([published["audio_decoder.embeddings.weight"]] * 4))
        assert written["depth.heads"].equal(torch.stack([published["audio_decoder.output.weight"]] * 4))
        assert config_at(release.checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
        assert release.family.layout.vocab_size == len(table)

    def test_codec_with_other_codebooks_is_refused(self, copied: SmallRelease) -> None:
        (copied.folder / "release" / "codec.pth").unlink()
        write_codec(copied.folder / "release", "small")
        expected = "expected 5 codebooks, the first of 64 codes, as in config.json, got 10 and 64"
        copied.assert_refused(expected)

    def test_recording_is_encoded(self, release: SmallRelease) -> None:
        codec = release.preprocessor.codec
        pcm = np.random.default_rng(3).standard_normal(codec.spec.samples_per_frame * 3 + 5).astype(np.float32) * 0.1
        voice = turn("system", text="Hello.", audio="pcm_in")
        inputs = asked(TEXT, voice, pcm=pcm, sample_rate=codec.spec.sample_rate)
        rows = release.preprocessor.prepare(RawRequest(**inputs)).rows
        layout = release.family.layout
        frames = rows[np.isin(rows[:, 0], layout.audio[0])] - np.array([ids.start for ids in layout.audio])
        assert frames.shape == (4, NUM_CODEBOOKS), "the last frame is completed with silence"
        assert (codec.encode(pcm) == frames.T).all()

    @pytest.mark.engine
    @pytest.mark.parametrize("uses_kernels", [False, *by_night(True)])
    def test_rows_sampled_as_on_a_gpu_are_the_same(
        self, release: SmallRelease, uses_kernels: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In torch, and with the kernels in Triton's interpreter."""
        from tests.engine.test_no_sync import as_on_a_gpu

        expected = replies(release)
        as_on_a_gpu(monkeypatch)
        engine = self.start_engine(release.checkpoint, **ENGINE, additional_config={"step_kernels": uses_kernels})
        try:
            answers = engine.run({name: reply.prompt for name, reply in expected.items()})
            assert {name: answer.rows for name, answer in answers.items()} == {
                name: reply.rows for name, reply in expected.items()
            }
            assert engine.is_clean()
        finally:
            engine.shutdown()

    @pytest.mark.engine
    @pytest.mark.skipif(not has_int8(torch.float32), reason="the processor has no VNNI instructions")
    def test_int8_layers_speak(self, release: SmallRelease, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replies are the same alone and in a batch, and others than without int8."""
        monkeypatch.setattr(int8, "MIN_WIDTH", 16)  # of small models
        usual = release.family.tasks[0].sampling
        audio = replace(usual.audio, min_rows=9, max_rows=20)
        prompts = {
            str(number): Prompt(
                "tts",
                absolute(reference_prompt("small", number), release.family),
                replace(usual, audio=audio, seed=number),
            )
            for number in range(3)
        }
        engine = self.start_engine(release.checkpoint, int8=True, **ENGINE)
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = {name: answer.rows for name, answer in engine.run(prompts).items()}
        engine.shutdown()
        assert together == alone
        engine = self.start_engine(release.checkpoint, **ENGINE)
        without = {name: answer.rows for name, answer in engine.run(prompts).items()}
        engine.shutdown()
        assert without != alone
