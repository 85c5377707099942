"""CSM equals transformers' classes: prompts, and the rows of replies."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CsmConfig, CsmForConditionalGeneration

from stretto.families.csm import PLUGIN
from stretto.families.csm.convert import CODES, CODES_OF_BACKBONE, SESAMES, Config, plan
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import asked, talk
from stretto.testing.releases import REMOVED, SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto.weights.loading import shapes_of
from tests.family_suite import FamilySuite
from tests.published_csm import (
    BEGIN,
    CODEBOOK_SIZE,
    END,
    END_OF_AUDIO,
    FIRST_IDS,
    NUM_CODEBOOKS,
    PAD,
    SCALING,
    CsmReference,
    make_model,
    prompt_of,
    swap_codes,
    write_saved,
)
from tests.small_vocabularies import SMALL_CSM

CODES_OF_A_TURN = np.random.default_rng(0).integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, 3))
HEARD = {"role": "user", "audio": "pcm_in", "text": "how are you?"}
FINE = {"role": "assistant", "text": "fine"}
WELL = {"role": "assistant", "text": "a well"}
SAID = FINE | {"codes": CODES_OF_A_TURN.tolist()}
SILENCE = {"pcm_in": np.zeros(48_000, np.float32), "sample_rate": 24_000}
END_ROW = [END_OF_AUDIO, *[PAD] * (NUM_CODEBOOKS - 1)]


@cache
def small_model() -> CsmForConditionalGeneration:
    """Return a model whose reply to the words of prompt 0 has a frame of zeros, but for its last code, in row 6."""
    model = make_model()
    frame = CsmReference(model).generated(prompt_of(0, num_frames=0))[6, :-1]
    swap_codes(model, frame.tolist())
    return model


def write(folder: Path, size: str) -> list[str]:
    return write_saved(folder / "release", small_model()).command


def published() -> PublishedSizes:
    shapes = shapes_of(CsmForConditionalGeneration, CsmConfig())
    return PublishedSizes(
        shapes=shapes,
        plan=plan(Config.read({"model_type": "csm", "depth_decoder_config": {}, "codec_config": {}}), shapes),
        written={
            "model.embed_tokens.weight": (128256 + 32 * 2048, 2048),
            "depth.embed": (31 * 2048, 1024),
            "depth.heads": (31, 2048, 1024),
        },
        num_written=16 * 9 + 4 * 9 + 2 + 5,
        unused=[name for name in shapes if name.startswith("codec_model.")],
    )


def words_of(release: SmallRelease, text: str) -> np.ndarray:
    """Return the rows of a turn's words as the chat template encodes them."""
    ids = Tokenizer.from_file(str(release.folder / "release/tokenizer.json")).encode(text).ids
    rows = np.full((len(ids) + 2, NUM_CODEBOOKS), PAD)
    rows[:, 0] = [BEGIN, *ids, END]
    return rows


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    frames = np.pad(CODES_OF_A_TURN.T, ((0, 1), (0, 0))) + FIRST_IDS
    turns = {"[1]fine": frames, "[0]why?": frames[:0], "[1]a well": frames[:0]}
    said = [rows for words, codes in turns.items() for rows in (words_of(release, words), codes)]
    return {
        "text": (asked("a well"), words_of(release, "[0]a well")),
        "voice": (asked("a well", voice="1"), words_of(release, "[1]a well")),
        "talk": (talk(SAID, {"role": "user", "text": "why?"}, WELL, voice="1"), np.concatenate(said)),
    }


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    oracle = CsmReference(small_model())
    requests = {f"r{index}": prompt_of(index, 2 + 7 * (index % 3), 1.0 + index % 2) for index in range(5)}
    expected = {name: ExpectedReply(prompt, [*oracle.reply(prompt), END_ROW]) for name, prompt in requests.items()}
    ending = prompt_of(0, num_frames=0)
    rows = oracle.reply(ending)
    assert len(rows) == 7
    assert rows[6][:-1] == FIRST_IDS[:-1].tolist()
    return expected | {"ended": ExpectedReply(ending, [*rows[:6], END_ROW])}


class TestCsm(FamilySuite):
    """Releases that transformers has saved: their only file has the name of Sesame's in the published repository."""

    case = FamilyCase(
        PLUGIN,
        write,
        unneeded_tensors=(CODES, CODES_OF_BACKBONE),  # one of the two
        same_configs=[
            {"tie_word_embeddings": True, "attn_implementation": "a/kernel-that-transformers-would-run"},
            {"rope_parameters": REMOVED, "rope_theta": 500000.0, "rope_scaling": SCALING},
            {"rope_parameters": REMOVED, "rope_scaling": SCALING, "head_dim": None},  # the default `rope_theta`
            {"depth_decoder_config.rms_norm_eps": REMOVED, "codebook_eos_token_id": REMOVED},
        ],
        refused_configs=[
            ({"model_type": "llama"}, "model_type: expected 'csm', got 'llama'"),
            ({"text_vocab_size": 321, "audio_eos_token_id": 5}, "at most 321 tokens"),
            ({"pad_token_id": 330}, "pad_token_id: expected an id in [0, 330), got 330"),
            ({"codec_config.num_codebooks": 8}, "codec_config: invalid parameters for mimi"),
            ({"hidden_size": 65}, "hidden_size: expected a multiple of 2 (num_attention_heads), got 65"),
            ({"hidden_size": 32}, "tensors do not match: wrong shape"),
        ],
        refused_edits=[
            (
                "release/model.safetensors",
                lambda tensors: tensors.update({SESAMES: torch.zeros(35, 64)}),
                "expected transformers.safetensors.index.json in transformers format, got Sesame's format",
            )
        ],
        needed_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(""), "text: expected text of at least one character"),
            (talk(SAID | {"role": "user"} | {"text": ""}, WELL), "messages[0].text: expected text of at least one"),
            (
                talk({"role": "user", "codes": SAID["codes"]}, WELL),
                "messages[0].codes: expected audio together with its transcript",
            ),
            (talk(SAID), "messages[0].codes: expected only text to speak in the last turn, got audio"),
            (talk(SAID | {"codes": [[0]] * 4}, WELL), f"messages[0].codes: expected {NUM_CODEBOOKS} streams"),
            (talk(HEARD, WELL) | SILENCE, "messages[0].audio: expected a recording of a voice, got silence"),
            (asked("o " * 300), "text: expected a prompt of at most 255 rows"),
        ],
        markers=["<|end_of_text|>"],
        replies=replies,
        engine={"max_model_len": 256},
        tight={"max_num_batched_tokens": 24, "num_gpu_blocks_override": 6, "max_model_len": 96},
        conformance={"vocabulary": SMALL_CSM.to_record()},
    )

    @pytest.mark.parametrize("table", [CODES, CODES_OF_BACKBONE])
    def test_one_table_of_codes_stands_for_both(self, copied: SmallRelease, tmp_path: Path, table: str) -> None:
        """Tied tables are stored once, under either name."""
        with self._tensors(copied) as tensors:
            tensors[CODES] = tensors[CODES_OF_BACKBONE].clone()
        expected = copied.weights
        alone = copied.copied(tmp_path / "alone")
        with self._tensors(alone) as tensors:
            del tensors[table]
        assert all(tensor.equal(expected[name]) for name, tensor in alone.weights.items())

    @pytest.mark.parametrize("length", [1920, 1921, 9_000])
    def test_embeddings_of_a_conversation_match_transformers(self, release: SmallRelease, length: int) -> None:
        pcm = (np.sin(np.arange(length) ** 1.3 / 300) / 2).astype(np.float32)
        inputs = talk(HEARD, FINE, WELL) | {"pcm_in": pcm, "sample_rate": 24_000}
        rows = release.preprocessor.prepare(RawRequest(**inputs)).rows
        oracle = CsmReference(small_model())
        samples = torch.from_numpy(pcm)[None, None]
        num_frames = oracle.model.codec_model.encode(samples, num_quantizers=NUM_CODEBOOKS).audio_codes.shape[2]
        heard, *others = (words_of(release, text)[:, 0] for text in ("[1]how are you?", "[0]fine", "[0]a well"))
        ids = [*heard, *[PAD] * num_frames, END_OF_AUDIO, *np.concatenate(others)]  # the pad stands for audio
        merged = oracle.model._merge_input_ids_with_input_values(torch.tensor([ids]), samples, torch.tensor([[length]]))
        torch.testing.assert_close(oracle.embeds(rows), merged["inputs_embeds"][0])

    @pytest.mark.engine
    def test_zero_frame_ends_a_reply_after_its_minimum_or_if_all_codes_are_zero(self, copied: SmallRelease) -> None:
        """Sesame's code ends a reply only at a frame whose last code is zero, too."""
        prompt = prompt_of(0, num_frames=0)
        sampling = prompt.sampling
        late = replace(prompt, sampling=replace(sampling, audio=replace(sampling.audio, min_rows=8)))
        assert len(self._frames(copied.checkpoint, prompt)) == 6
        assert len(self._frames(copied.checkpoint, late)) >= 8
        with edited(copied.checkpoint / "config.json") as config:
            config["speech_vocabulary"]["num_end_codebooks"] = NUM_CODEBOOKS
        assert len(self._frames(copied.checkpoint, prompt)) == sampling.audio.max_rows

    def _frames(self, checkpoint: Path, prompt: Prompt) -> list[list[int]]:
        with self.start_engine(checkpoint, max_model_len=256) as engine:
            return engine.run({"one": prompt})["one"].rows[:-1]
