"""MOSS-TTS-Realtime equals OpenMOSS's own code: prompts, and the rows of replies, also word by word."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.moss.lab.moss_tts_realtime_replies import (
    MAX_FRAMES,
    REPLIES,
    TEMPERATURE_HERE,
    TEXTS,
    heard_codes,
    stored,
)
from plugins.moss.lab.random_moss_realtime import IDS, command, config, model_shapes, model_tensors, write_release
from plugins.moss.tests.small_families import SMALL_MOSS_TTS_REALTIME
from stretto.engine.reply_rules import TextUpdate
from stretto.family.base import Family
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import config_at
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.testing.limits import asked
from stretto.testing.releases import REMOVED, SmallRelease
from stretto.testing.suite import ExpectedReply, FamilyCase, PublishedSizes
from stretto.weights.loading import shapes_read
from stretto_moss.moss_tts_realtime import PLUGIN
from stretto_moss.moss_tts_realtime.convert import UNUSED, Config, plan, vocabulary
from stretto_moss.moss_tts_realtime.family import NUM_PROMPT_IDS
from tests.family_suite import FamilySuite
from tests.tiers import by_night

QWEN3_1_7B = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
QWEN3_1_7B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
PUBLISHED_IDS = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|audio_pad|>": 151654, "<|text_pad|>": 151655}
PAD = IDS["<|text_pad|>"]
ENGINE = {"max_model_len": 512}


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def published() -> PublishedSizes:
    """Qwen3-1.7B with 16 codebooks of 1,024 codes, with the ids and defaults of the authors' class."""
    record = config("served") | {"language_config": QWEN3_1_7B}
    whole = record | {"local_config": QWEN3_1_7B | {"num_hidden_layers": 4}}
    record["local_config"] = {"model_type": "moss_tts_realtime_local_transformer"}
    del record["reference_audio_pad"], record["text_pad"]
    tokenizer = Tokenizer(Path(), 151669, {token_id: name for name, token_id in PUBLISHED_IDS.items()})
    release = Config.read(record)
    parts = plan(release, vocabulary(release, tokenizer))
    shapes = shapes_read(parts)
    assert shapes | {UNUSED: (151936, 2048)} == model_shapes(whole)
    return PublishedSizes(
        shapes=shapes,
        plan=parts,
        written={
            "model.embed_tokens.weight": (168_368, 2048),
            "depth.first_head": (1025, 2048),
            "depth.heads": (15, 1024, 2048),
            "depth.embed": (15 * 1024, 2048),
        },
        num_written=28 * 11 + 4 * 11 + 2 + 4,
    )


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint and the text last, int32."""
    first_codes = np.array([ids.start for ids in family.layout.audio])
    return np.concatenate([rows[:, 1:] + first_codes, rows[:, :1]], 1).astype(np.int32)


def prompt_of(release: SmallRelease, voice: int, words: list[int]) -> Prompt:
    """Return the prompt for the ids of a text: the authors' rows, those of the first ids, and the others for frames."""
    family = release.family
    first = np.full((min(NUM_PROMPT_IDS, len(words)), 1 + family.num_codebooks), family.layout.codebook_size)
    first[:, 0] = words[:NUM_PROMPT_IDS]
    first[-1, 1] += 1
    rows = np.concatenate([stored()[f"{release.size}.prompt{voice}"], first])
    return Prompt("tts", absolute(rows, family), family.tasks[0].sampling, track=(*words[NUM_PROMPT_IDS:], PAD))


def words_of(release: SmallRelease, number: int) -> list[int]:
    """Return the ids of one of the texts."""
    words: list[int] = stored()[f"{release.size}.words{number}"].tolist()
    return words


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """Prompts with open text have rows for the first ids, too: those of a text of pads, until its ids are known."""
    voice = {"codes": heard_codes(release.size).tolist()}
    expected = {
        f"{number}.{has_voice}": (
            asked(text, voice if has_voice else None),
            prompt_of(release, has_voice, words_of(release, number)).rows,
        )
        for number, text in enumerate(TEXTS)
        for has_voice in (0, 1)
    }
    pads = prompt_of(release, 0, [PAD] * NUM_PROMPT_IDS)
    return expected | {"open": (asked("the text so far ", text_mode="open"), pads.rows)}


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    family = release.family
    first_codes = np.array([ids.start for ids in family.layout.audio])
    last = [family.end_of_audio, *[family.layout.pad_id] * (family.num_codebooks - 1)]
    expected = dict[str, ExpectedReply]()
    for voice in range(2):
        for number in range(len(TEXTS)):
            for seed, mode in REPLIES:
                name = f"{release.size}.{voice}.{number}.{seed}.{mode}"
                prompt = prompt_of(release, voice, words_of(release, number))
                temperature = 0.0 if mode == "greedy" else TEMPERATURE_HERE
                audio = replace(prompt.sampling.audio, max_rows=MAX_FRAMES, temperature=temperature)
                prompt = replace(prompt, sampling=replace(prompt.sampling, seed=seed, audio=audio))
                codes = stored()[name]
                ends = np.flatnonzero(codes[:, 0] == family.layout.codebook_size + 2)
                frames = codes[: ends[0] if len(ends) else None] + first_codes
                expected[name] = ExpectedReply(prompt, [*frames.tolist(), last])
    assert {len(reply.rows) <= MAX_FRAMES for reply in expected.values()} == {True, False}, "some end, some are cut"
    return expected


class TestMossTtsRealtime(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("small", "deep"),
        other_sizes=("odd",),
        unneeded_tensors=(UNUSED,),
        same_configs=[
            {
                "language_config.rope_parameters": REMOVED,
                "local_config.rope_parameters": REMOVED,
                "language_config.rope_theta": 1e6,
                "language_config.rope_scaling": None,
                "language_config.torch_dtype": "bfloat16",
                "dtype": REMOVED,
                "torch_dtype": "float32",
            }
        ],
        refused_configs=[
            ({"model_type": "moss_tts_delay"}, "model_type: expected 'moss_tts_realtime', got 'moss_tts_delay'"),
            ({"rvq": 4, "local_config.rvq": 4}, "missing: embed_tokens.4.weight"),
            ({"rvq": 4}, "local_config.rvq: expected 4, got 3"),
            ({"audio_vocab_size": 18}, "audio_vocab_size: expected 19, got 18"),
            ({"text_pad": 9}, "text_pad: expected 308 (<|text_pad|>), got 9"),
            ({"local_config.hidden_size": 32}, "local_config.hidden_size: expected 64, got 32"),
            ({"local_config.num_attention_heads": 3}, "local_config.num_attention_heads: expected a multiple of 2 "),
            ({"local_config.num_hidden_layers": 2}, "missing: local_transformer.model.layers.1"),
        ],
        refused_edits=[
            (
                "codec/config.json",
                lambda record: record["quantizer_kwargs"].update(num_quantizers=2),
                "expected 3 codebooks of 16 codes, got 2 of 16",
            ),
        ],
        needed_tokens=["<|im_start|>", "<|im_end|>", "<|audio_pad|>", "<|text_pad|>"],
        published=published,
        prompts=prompts,
        refused_inputs=[
            (asked(""), "text: expected text of at least one character"),
            (asked("a", pcm=np.full(1919, 0.1, np.float32)), "pcm_in: expected at least 0.08 s"),
            (asked("a", {"codes": [[0] * 5] * 4}), "messages[0].codes: expected 3 lists of at most 750 codes"),
            (
                asked("a", {"codes": [[16] * 5] * 3}),
                "messages[0].codes: expected 3 lists of at most 750 codes in [0, 1",
            ),
            (asked("a", guidance_scale=2), "options.guidance_scale: expected"),
        ],
        markers=["<|text_pad|>"],
        replies=replies,
        engine=ENGINE,
        tight={"num_gpu_blocks_override": 17},
        conformance={
            # replies to more codes than in other tests end late enough for some to be preempted
            "vocabulary": replace(SMALL_MOSS_TTS_REALTIME, codebook_size=40).to_record(),
            "num_prompts": 16,
        },
        conforms_by_night=True,
    )

    def test_tables_and_heads_are_joined(self, release: SmallRelease) -> None:
        published = {name: torch.from_numpy(tensor) for name, tensor in model_tensors().items()}
        heads = [published[f"local_transformer.local_lm_heads.{number}.weight"] for number in range(3)]
        codes = [published[f"local_transformer.model.embed_tokens.{number}.weight"][:16] for number in range(2)]
        written = release.weights
        table = written["model.embed_tokens.weight"]
        assert table.equal(torch.cat([published[f"embed_tokens.{number}.weight"] for number in range(4)]))
        assert written["depth.first_head"].equal(torch.cat([heads[0][:16], heads[0][18:]]))
        assert written["depth.heads"].equal(torch.stack([heads[1][:16], heads[2][:16]]))
        assert written["depth.embed"].equal(torch.cat(codes))
        assert "depth.project.weight" not in written
        assert config_at(release.checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
        assert release.family.layout.vocab_size == len(table)
        assert release.family.depth is not None
        assert release.family.depth.rope == {"rope_type": "default", "rope_theta": 1e6}

    @pytest.mark.parametrize("number", range(len(TEXTS)))
    def test_rest_of_the_text_is_beside_the_reply(self, release: SmallRelease, number: int) -> None:
        """Other streams of the prompt have codes and pads only, because the engine refuses other ids."""
        layout = release.family.layout
        prompt = release.preprocessor.prepare(RawRequest(**asked(TEXTS[number])))
        assert prompt.track == (*words_of(release, number)[NUM_PROMPT_IDS:], PAD)
        for stream, ids in enumerate(layout.audio[1:], 1):
            assert {*prompt.rows[:, stream].tolist()} - {*ids} == {layout.initial[stream]}
        assert prompt.sampling.audio.min_rows == len(prompt.track), "a reply does not end before its text"

    def test_open_prompt_has_no_text_beside_it(self, release: SmallRelease) -> None:
        prompt = release.preprocessor.prepare(RawRequest(**asked("the text so far ", text_mode="open")))
        assert prompt.is_open
        assert prompt.track == ()

    def test_recording_is_encoded_with_the_first_codebooks(self, release: SmallRelease) -> None:
        """An incomplete last frame is left out, as in the authors' streaming programs."""
        family = release.family
        pcm = np.random.default_rng(3).standard_normal(1920 * 5 + 700).astype(np.float32) * 0.1
        rows = release.preprocessor.prepare(RawRequest(**asked("a", pcm=pcm))).rows
        codes = rows[rows[:, -1] == IDS["<|audio_pad|>"], :-1] - [ids.start for ids in family.layout.audio]
        assert codes.shape == (5, family.num_codebooks)
        assert (release.preprocessor.codec.encode(pcm) == codes.T).all()

    @pytest.mark.engine
    @pytest.mark.parametrize("is_async", [True, *by_night(False)])
    def test_text_word_by_word_gives_the_same_rows(self, release: SmallRelease, is_async: bool) -> None:
        """Words arrive at several paces. Neither reply ends before its text, as `MossRealtimeTemplate` requires."""
        from tests.engine.harness import Answer, Engine, update_request

        expected = replies(release)
        prompts = {name: reply.prompt for name, reply in expected.items() if len(reply.prompt.track) > 1}
        for name, prompt in prompts.items():
            audio = replace(prompt.sampling.audio, min_rows=len(prompt.track), max_rows=2 * MAX_FRAMES)
            prompts[name] = replace(prompt, sampling=replace(prompt.sampling, audio=audio))
        with Engine(release.checkpoint, async_scheduling=is_async, **ENGINE) as engine:
            at_once = {name: answer.rows for name, answer in engine.run(prompts).items()}
            unsent = {name: list(prompt.track) for name, prompt in prompts.items()}
            answers = defaultdict(Answer)
            step = 0
            for index, (name, prompt) in enumerate(prompts.items()):
                sent = unsent[name][: index % 3]
                unsent[name] = unsent[name][index % 3 :]
                sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, min_rows=0))
                engine.add(name, replace(prompt, track=tuple(sent), is_open=True, sampling=sampling))
            while engine.is_busy() or any(unsent.values()):
                for index, name in enumerate(prompts):
                    if unsent[name] and step % (1 + index % 4) == 0:
                        sent = unsent[name][: 1 + index % 2]
                        unsent[name] = unsent[name][1 + index % 2 :]
                        update = TextUpdate(name, np.array(sent, np.int32), not unsent[name])
                        engine.core.add_request(update_request(update))
                engine._step(answers)
                step += 1
            assert any(answer.trailer is not None and answer.trailer.held_us > 0 for answer in answers.values())
        assert len(prompts) == 18
        assert {name: answer.rows for name, answer in answers.items()} == at_once
        assert {len(rows) <= 2 * MAX_FRAMES for rows in at_once.values()} == {True, False}, "some end, some are cut"
