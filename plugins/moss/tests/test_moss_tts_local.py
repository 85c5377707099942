"""MOSS-TTS-Local equals OpenMOSS's own code: prompts, and the rows of replies."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from plugins.moss.lab.moss_tts_local_replies import (
    INSTRUCTION,
    LANGUAGE,
    MAX_ROWS,
    REPLIES,
    TEXTS,
    heard_codes,
    stored,
)
from plugins.moss.lab.random_moss_local import IDS, command, config, model_shapes, model_tensors, write_release
from plugins.moss.tests.small_families import SMALL_MOSS_TTS_LOCAL
from stretto.family.base import Family
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing.checkpoints import write_checkpoint
from stretto.testing.limits import asked
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_moss.moss_tts.prompt import levelled
from stretto_moss.moss_tts_local import PLUGIN
from stretto_moss.moss_tts_local.convert import COPIES, TEXT_HEAD, Config, plan, vocabulary
from tests.family_suite import FamilySuite

QWEN3_4B = {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
QWEN3_4B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
GPT2 = {"n_embd": 2560, "n_head": 32, "n_inner": 9728, "n_layer": 1, "activation_function": "silu"}
GPT2 |= {"position_embedding_type": "rope", "layer_norm_epsilon": 1e-6}


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published() -> PublishedSizes:
    """Qwen3-4B with 12 codebooks of 1,024 codes: 438 tensors, as a published file is known to have."""
    record = {name: value for name, value in config("served").items() if name not in IDS}
    record |= {"qwen3_config": QWEN3_4B, "language_config": QWEN3_4B, "gpt2_config": GPT2}
    record["local_transformer_layers"] = 1
    release = Config.read(record)
    known = vocabulary(release)
    assert (known.slot, known.audio_end, known.depth.head_dim) == (151656, 151670, 80)
    shapes = model_shapes(record)
    assert len(shapes) == 438
    return PublishedSizes(
        shapes=shapes,
        plan=plan(release, known),
        written={
            "model.embed_tokens.weight": (164_224, 2560),
            "depth.heads": (12, 1024, 2560),
            "depth.embed": (1 + 11 * 1024, 2560),
        },
        num_written=36 * 11 + 2 + 1 * 16 + 2 + 3,
        unused=[TEXT_HEAD, *(f"{COPIES}{number}.weight" for number in range(12))],
    )


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint, int32."""
    first_codes = np.array([ids.start for ids in family.layout.audio[1:]])
    codes = np.where(rows[:, 1:] == family.layout.codebook_size, family.layout.pad_id, rows[:, 1:] + first_codes)
    return np.concatenate([rows[:, :1], codes], 1).astype(np.int32)


def prompt_rows(release: SmallRelease, number: int) -> np.ndarray:
    return absolute(stored()[f"{release.size}.prompt{number}"], release.family)


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    voice = {"codes": heard_codes(release.size).tolist()}
    spoken = asked(TEXTS[1], voice, language=LANGUAGE, instruct=f" {INSTRUCTION} ")
    return {"text": (asked(TEXTS[0]), prompt_rows(release, 0)), "voice": (spoken, prompt_rows(release, 1))}


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    return expected_replies(release, stored(), REPLIES, MAX_ROWS)


def expected_replies(
    release: SmallRelease, stored: Mapping[str, np.ndarray], seeds: Sequence[tuple[int, str]], max_rows: int
) -> Mapping[str, ExpectedReply]:
    """Return the replies to both stored prompts.

    Args:
        stored: Prompts, and the authors' rows of each reply, [T, 1 + K], by name.
        seeds: Seed and mode of each reply.
    """
    family = release.family
    last = [family.end_of_audio, *[family.layout.pad_id] * family.num_codebooks]
    expected = dict[str, ExpectedReply]()
    for number in range(2):
        rows = absolute(stored[f"{release.size}.prompt{number}"], family)
        for seed, mode in seeds:
            name = f"{release.size}.{number}.{seed}.{mode}"
            sampling = replace(family.tasks[0].sampling, seed=seed)
            audio = replace(sampling.audio, max_rows=max_rows)
            codes = sampling.depth
            if mode == "greedy":
                audio = replace(audio, temperature=0.0)
                codes = CodeSampling(0.0)
            prompt = Prompt("tts", rows, replace(sampling, audio=audio, depth=codes))
            expected[name] = ExpectedReply(prompt, [*absolute(stored[name], family).tolist(), last])
    assert {len(reply.rows) <= max_rows for reply in expected.values()} == {True, False}, "some end, some are cut"
    return expected


def write_with_long_replies(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint in which the end of audio is less likely than a slot."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights = load_file(path)
    weights["depth.first_head"][0] += 8 * weights["depth.norm.bias"]
    save_file(weights, path)
    return folder


class TestMossTtsLocal(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        other_sizes=("odd",),
        unneeded_tensors=[name for name in model_tensors() if "lm_head" in name and name.startswith(("audio", "text"))],
        refused_configs=[
            ({"model_type": "moss_tts_delay"}, "model_type: expected 'moss_tts_local', got 'moss_tts_delay'"),
            ({"n_vq": 5}, "audio_codebook_sizes: expected 5 times 16"),
            ({"n_vq": 5, "audio_codebook_sizes": None}, "missing: audio_embeddings.4.weight"),
            ({"audio_end_token_id": 320}, "audio_end_token_id: expected an id in [0, 320), got 320"),
            ({"audio_end_token_id": IDS["audio_start_token_id"]}, "7 different ids of text tokens"),
            ({"local_transformer_layers": 2}, "missing: local_transformer.h.1"),
            ({"gpt2_config.n_embd": 32}, "gpt2_config.n_embd: expected 64, got 32"),
            ({"gpt2_config.n_head": 3}, "gpt2_config.n_head: expected heads of an even size, got 64 / 3"),
        ],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(" \n"), "text: expected text of at least one character"),
            (asked("a", pcm=np.full(1919, 0.1, np.float32)), "pcm_in: expected at least 0.08 s"),
            (asked("a", {"codes": [[0] * 5] * 3}), "messages[0].codes: expected 4 lists of at most 750 codes"),
            (
                asked("a", {"codes": [[16] * 5] * 4}),
                "messages[0].codes: expected 4 lists of at most 750 codes in [0, 1",
            ),
            (asked("a", repetition_penalty=1.1), "options.repetition_penalty: expected 1.0"),
        ],
        markers=["<|audio_end|>"],
        refused_markers=["<|audio_end|>"],
        text_options=["instruct"],
        replies=replies,
        engine={"max_model_len": 320},
        tight={"num_gpu_blocks_override": 17},
        conformance={
            "vocabulary": SMALL_MOSS_TTS_LOCAL.to_record(),
            "write": write_with_long_replies,
            "num_prompts": 20,
            "seed": 1,
        },
        conforms_by_night=True,
    )

    def test_tables_and_heads_are_joined(self, release: SmallRelease) -> None:
        published = {name: torch.from_numpy(tensor) for name, tensor in model_tensors().items()}
        tables = [published[f"audio_embeddings.{number}.weight"] for number in range(4)]
        written = release.weights
        table = written["model.embed_tokens.weight"]
        assert table.equal(torch.cat([published["transformer.embed_tokens.weight"], *tables]))
        assert written["depth.heads"].equal(torch.stack(tables))
        assert written["depth.embed"].equal(torch.cat([torch.zeros(1, 64), *tables[:3]]))
        assert written["depth.first_head"].equal(published["local_text_lm_head.weight"])
        value = published["local_transformer.h.0.attn.c_attn.bias"][128:]
        assert written["depth.layers.0.v_proj.bias"].equal(value)
        assert release.family.layout.vocab_size == len(table)
        assert release.family.end_of_audio == IDS["audio_end_token_id"]

    def test_release_without_copies_and_with_the_whole_head_is_converted(self, copied: SmallRelease) -> None:
        """Then the choice between a slot and the end is made by two rows of the table."""
        with edited(copied.folder / self.case.config) as record:
            record["local_text_head_mode"] = "full_vocab"
        with edited(copied.folder / self.case.weights) as tensors:
            for name in [name for name in tensors if "lm_head" in name]:
                del tensors[name]
        ids = [IDS["audio_assistant_slot_token_id"], IDS["audio_end_token_id"]]
        assert copied.weights["depth.first_head"].equal(tensors["transformer.embed_tokens.weight"][ids])

    def test_head_that_is_no_copy_is_refused(self, copied: SmallRelease) -> None:
        with edited(copied.folder / self.case.weights) as tensors:
            tensors["audio_lm_heads.1.weight"][0, 0] += 1
        expected = "audio_lm_heads.1.weight: expected a copy of audio_embeddings.1.weight"
        copied.assert_refused(expected)

    def test_recording_is_levelled_and_encoded(self, release: SmallRelease) -> None:
        pcm = np.random.default_rng(3).standard_normal(3840 * 5 + 700).astype(np.float32) * 0.02
        rows = release.preprocessor.prepare(RawRequest(**asked("a", pcm=pcm, sample_rate=48_000))).rows
        first_codes = [ids.start for ids in release.family.layout.audio[1:]]
        codes = rows[rows[:, 0] == IDS["audio_user_slot_token_id"], 1:] - first_codes
        assert codes.shape == (5, release.family.num_codebooks)
        assert (release.preprocessor.codec.encode(levelled(pcm)) == codes.T).all()
