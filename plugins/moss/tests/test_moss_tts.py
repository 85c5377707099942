"""MOSS-TTS equals OpenMOSS's own code: prompts, and the rows of replies."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.moss.lab.moss_tts_replies import INSTRUCTION, LANGUAGE, REPLIES, TEXT, heard_codes, recording, stored
from plugins.moss.lab.random_moss import IDS, command, config, model_shapes, model_tensors, write_release
from plugins.moss.tests.small_families import SMALL_MOSS_TTS
from stretto.engine.reply_rules import SegmentRules
from stretto.family.base import Family
from stretto.family.plugin import config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing.checkpoints import write_checkpoint
from stretto.testing.limits import asked
from stretto.testing.releases import REMOVED, SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto_moss.moss_tts import PLUGIN
from stretto_moss.moss_tts.convert import plan, read_config
from tests.family_suite import FamilySuite

QWEN3_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN3_8B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 155648, "max_position_embeddings": 40960}
SLOT = IDS["audio_user_slot_token_id"]


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published() -> PublishedSizes:
    """Qwen3-8B with 155,648 text ids, and 32 codebooks of 1,024 codes, as the authors' class names its tensors."""
    record = {name: value for name, value in config("served").items() if name not in IDS}
    record["language_config"] = QWEN3_8B
    backbone, vocabulary = read_config(record)
    assert (vocabulary.slot, vocabulary.delay, vocabulary.audio_end) == (151656, 151662, 151653)
    shapes = model_shapes(record)
    return PublishedSizes(
        shapes=shapes,
        plan=plan(backbone, vocabulary),
        written={"model.embed_tokens.weight": (188_448, 4096), "audio_head.weight": (2 + 32 * 1024, 4096)},
        num_written=36 * 11 + 3,
    )


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint, int32."""
    first_codes = np.array([0, *(ids.start for ids in family.layout.audio[1:])])
    return (rows + first_codes).astype(np.int32)


def prompt_rows(release: SmallRelease, number: int) -> np.ndarray:
    """Return the authors' prompt with the row that begins the audio, which the model generates in their loop."""
    begin = np.array([[IDS["audio_start_token_id"], *release.family.layout.initial[1:]]], np.int32)
    return np.concatenate([absolute(stored()[f"{release.size}.prompt{number}"], release.family), begin])


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    voice = {"codes": heard_codes(release.size).tolist()}
    spoken = asked(TEXT, voice, language=LANGUAGE, instruct=f" {INSTRUCTION} ")
    return {"text": (asked(TEXT), prompt_rows(release, 0)), "voice": (spoken, prompt_rows(release, 1))}


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    family = release.family
    expected = dict[str, ExpectedReply]()
    for number in range(2):
        for seed, mode in REPLIES:
            name = f"{release.size}.{number}.{seed}.{mode}"
            rows = stored()[name]
            sampling = replace(family.tasks[0].sampling, seed=seed)
            audio = replace(sampling.audio, max_rows=len(rows))
            codes = sampling.depth
            if mode == "greedy":
                audio = replace(audio, temperature=0.0)
                codes = CodeSampling(0.0)
            prompt = Prompt("tts", prompt_rows(release, number), replace(sampling, audio=audio, depth=codes))
            end = np.flatnonzero(rows[:, 0] == family.end_of_audio)
            spoken = absolute(rows[: end[0] if len(end) else None], family).tolist()
            last = [family.end_of_audio, *[family.layout.pad_id] * family.num_codebooks]
            expected[name] = ExpectedReply(prompt, [*spoken, last])
    return expected


def write_with_head(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint whose head for slots and codes is part of the head for all ids."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights = load_file(path)
    rules = SegmentRules(family, 1)
    ids = [token for stream in range(len(family.layout.audio)) for token in rules.audio_ids(stream)]
    weights["audio_head.weight"] = weights["lm_head.weight"][ids]
    save_file(weights, path)
    return folder


class TestMossTts(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        other_sizes=("odd",),
        same_configs=[
            {
                "language_config.rope_parameters": REMOVED,
                "language_config.rope_theta": 1e6,
                "language_config.rope_scaling": None,
                "language_config.torch_dtype": "bfloat16",
                "dtype": REMOVED,
                "torch_dtype": "float32",
            }
        ],
        refused_configs=[
            ({"local_num_layers": 4}, "local_num_layers: expected no value, got 4"),
            ({"model_type": "moss_tts_realtime"}, "model_type: expected 'moss_tts_delay', got 'moss_tts_realtime'"),
            ({"n_vq": 5}, "missing: emb_ext.4.weight"),
            ({"audio_pad_code": 0}, "audio_pad_code: expected 16, got 0"),
            (
                {"language_config": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}},
                "rope_scaling: expected",
            ),
            ({"audio_end_token_id": 320}, "audio_end_token_id: expected an id in [0, 320), got 320"),
            ({"audio_end_token_id": IDS["audio_start_token_id"]}, "8 different ids of text tokens"),
        ],
        refused_edits=[
            (
                "codec/config.json",
                lambda record: record["quantizer_kwargs"].update(num_quantizers=2),
                "expected 4 codebooks of 16 codes, got 2 of 16",
            ),
        ],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(" \u200b "), "text: expected text with at least one letter or digit"),
            (asked("中a" * 2000), "text: expected at most 4000 characters with spaces between scripts"),
            (asked("a", pcm=np.full(1919, 0.1, np.float32)), "pcm_in: expected at least 0.08 s"),
            (asked("a", {"codes": [[0] * 5] * 3}), "messages[0].codes: expected 4 lists of at most 750 codes"),
            (
                asked("a", {"codes": [[16] * 5] * 4}),
                "messages[0].codes: expected 4 lists of at most 750 codes in [0, 16)",
            ),
        ],
        markers=["<|audio_assistant_delay_slot|>"],
        refused_markers=["<|audio_assistant_delay_slot|>"],
        text_options=["instruct"],
        replies=replies,
        engine={"max_model_len": 320},
        tight={"num_gpu_blocks_override": 19},
        conformance={
            "vocabulary": replace(SMALL_MOSS_TTS, num_codebooks=12).to_record(),  # then replies have at least 12 rows
            "write": write_with_head,
            "num_prompts": 20,
        },
        conforms_by_night=True,
    )

    def test_tables_and_heads_are_joined(self, release: SmallRelease) -> None:
        published = {name: torch.from_numpy(tensor) for name, tensor in model_tensors().items()}
        tables = [published[f"emb_ext.{number}.weight"] for number in range(4)]
        ends = [IDS[f"audio_assistant_{name}_slot_token_id"] for name in ("gen", "delay")]
        heads = [published[f"lm_heads.{number}.weight"][:-1] for number in range(1, 5)]
        written = release.weights
        table = written["model.embed_tokens.weight"]
        assert table.equal(torch.cat([published["language_model.embed_tokens.weight"], *tables]))
        assert written["audio_head.weight"].equal(torch.cat([published["lm_heads.0.weight"][ends], *heads]))
        assert "lm_head.weight" not in written
        assert config_at(release.checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
        assert release.family.layout.vocab_size == len(table)

    def test_recording_is_levelled_and_encoded_as_there(self, release: SmallRelease) -> None:
        family = release.family
        rows = release.preprocessor.prepare(RawRequest(**asked("a", pcm=recording()))).rows
        expected = stored()["levelled_codes"]
        heard = rows[rows[:, 0] == SLOT]
        assert len(heard) == expected.shape[1] + family.num_codebooks - 1
        for codebook, ids in enumerate(family.layout.audio[1:]):
            codes = heard[codebook : codebook + expected.shape[1], 1 + codebook] - ids.start
            assert (codes == expected[codebook]).mean() > 0.97  # two entries may be equally near

    @pytest.mark.parametrize("sample_rate", [8000, 48_000])
    def test_recording_of_another_rate_has_its_length(self, release: SmallRelease, sample_rate: int) -> None:
        pcm = np.resize(recording(), 4 * sample_rate)
        rows = release.preprocessor.prepare(RawRequest(**asked("a", pcm=pcm, sample_rate=sample_rate))).rows
        assert np.count_nonzero(rows[:, 0] == SLOT) == 4 * 12.5 + 3
