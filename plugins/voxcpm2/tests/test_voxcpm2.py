"""VoxCPM2 equals the authors' code: prompts, and patches within a nudge's effect; every batch gives the same bits."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.voxcpm2.lab.random_voxcpm2 import NUM_TOKENS, RECORDINGS, config, write_release
from plugins.voxcpm2.tests.voxcpm2_release import LATENT_TOLERANCE, MODES, PROMPT_TEXT, TEXT, reply, request, wave_file
from stretto.errors import CheckpointError
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import VOCABULARY, config_at, read_family
from stretto.family.pronunciations import spelling
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.limits import asked, talk
from stretto.testing.releases import SmallRelease, assert_refused
from stretto.testing.suite import ExpectedReply, FamilyCase
from stretto_contract.pronunciation import DictionaryEntry
from stretto_voxcpm2 import PLUGIN
from stretto_voxcpm2.family import AUDIO_START, REFERENCE_END, REFERENCE_START, VoxCpmVocabulary
from stretto_voxcpm2.prompt import VoxCpmTokenizer
from tests.engine.nudges import assert_latents_near
from tests.family_suite import FamilySuite

if TYPE_CHECKING:
    from stretto.testing.conformance import Answer

# Prompts in chunks, and memory for little more than two replies: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 4,
    "max_model_len": 96,
}
MODEL = "release/model.safetensors"
CODEC = "release/audiovae.pth"
STOP = "stop_head.weight"
GAIN = "decoder.model.1.weight_g"
SPREAD = "encoder.fc_logvar.bias"
RATES = "decoder.sr_bin_boundaries"
FRAME = NUM_TOKENS
SYSTEM = {"role": "system", "audio": "audio"}
USER = {"role": "user", "text": "a"}
ASSISTANT = {"role": "assistant", "audio": "audio"}


def write(folder: Path, size: str) -> list[str]:
    return ["voxcpm2", "--model", str(write_release(folder / "release", size))]


def heard(*turns: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the inputs for a conversation with the reference's file as each recording."""
    files = tuple(wave_file("reference") for turn in turns if "audio" in turn)
    return talk(*turns, **options) | {"audio": files or None}


def same_in_batches(checkpoint: Path, prompts: dict[str, Prompt], **options: Any) -> "dict[str, Answer]":
    """Return unbatched replies; assert that they are bit-identical batched, preempted and cached."""
    from tests.engine.harness import Engine

    with Engine(checkpoint, max_model_len=128) as engine:
        alone = {name: engine.run({name: prompt})[name] for name, prompt in prompts.items()}
    with Engine(checkpoint, **TIGHT, **options) as engine:
        for arrivals in ({"both": 3}, {}):  # the second time, prompts may come from the prefix cache
            answers = engine.run(prompts, arrivals)
            assert {name: answer.rows for name, answer in answers.items()} == {
                name: answer.rows for name, answer in alone.items()
            }
            assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
        assert engine.is_clean()
    return alone


def assert_near_authors(release: SmallRelease, mode: str, rows: np.ndarray) -> None:
    """Assert that the patches and the end of a reply are those of the authors' code."""
    expected = reply(release.size, mode)
    frame, last = release.family.layout.audio[0]
    ids = [frame] * (len(expected.latents) - expected.has_ended) + [last] * expected.has_ended
    assert rows[:, 0].tolist() == [*ids, release.family.end_of_reply], mode
    assert_latents_near(latents_of(rows[:-1, 1:].astype(np.int32)), expected.latents, expected.nudged)


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    return {
        mode: ExpectedReply(release.preprocessor.prepare(request(mode)), partial(assert_near_authors, release, mode))
        for mode in MODES
    }


class TestVoxCpm2(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("plain", "scaled"),
        refused_configs=[
            ({"architecture": "voxcpm"}, "architecture: expected voxcpm2, got 'voxcpm'"),
            ({"dit_config.dit_mean_mode": True}, "dit_config.dit_mean_mode: expected false"),
            ({"residual_lm_no_rope": False}, "residual_lm_no_rope: expected false and true, got False"),
            ({"lm_config.rope_scaling.short_factor": [1.0]}, "rope_scaling.short_factor: expected 16 numbers, got 1"),
            ({"encoder_config.kv_channels": 16}, "encoder_config: expected 32 channels per head, got 16"),
            ({"lm_config.vocab_size": 150}, "expected a tokenizer of at most 150 tokens, got 160"),
            ({"audio_vae_config.latent_dim": 16}, "audio_vae_config.latent_dim: expected 8, got 16"),
            ({"audio_vae_config.use_noise_block": True}, "audio_vae_config: expected {'use_noise_block': False}"),
            ({"scalar_quantization_scale": None}, "scalar_quantization_scale: expected a positive integer, got None"),
            ({"max_length": "long"}, "max_length: expected a positive integer, got 'long'"),
            ({"lm_config": [1]}, "cannot be read as a release of voxcpm2"),
        ],
        refused_edits=[
            (CODEC, lambda t: t["state_dict"].pop(GAIN), f"missing: {GAIN}"),
            (CODEC, lambda t: t["state_dict"].pop(SPREAD), f"missing: {SPREAD}"),
            (CODEC, lambda t: t["state_dict"].update(more=torch.zeros(2)), "unknown: more"),
            (
                CODEC,
                lambda t: t["state_dict"].update({GAIN: torch.ones(128)}),
                f"wrong shape: {GAIN} [128] instead of [128, 1, 1]",
            ),
            (
                CODEC,
                lambda t: t["state_dict"][RATES].fill_(7),
                f"{RATES}: expected [20000, 30000, 40000], got [7, 7, 7]",
            ),
            (
                CODEC,
                lambda t: t["state_dict"].update(more="text"),
                "audiovae.pth: expected tensors by name, or under 'module', 'state_dict' or 'model'",
            ),
        ],
        refused_inputs=[
            (asked(" \n"), "text: expected text of at least one character"),
            (heard({"role": "system", "text": "a"}, USER), "messages[0].text: expected a transcript with its audio"),
            (heard(SYSTEM | {"text": "a"}, USER, ASSISTANT, USER), "messages: "),
            (heard(USER, ASSISTANT, USER, ASSISTANT, USER), "messages: expected one text with the audio of its reply"),
            (
                heard(USER, {"role": "assistant", "text": "b"}, USER),
                "messages: expected one text with the audio of its reply",
            ),
            (heard(USER, instruct="low " * 251), "options.instruct: expected at most 1000 characters, got 1004"),
            (
                heard(USER, ASSISTANT, USER, instruct="low"),
                "options.instruct: expected no value, as audio is continued",
            ),
            (
                heard({"role": "system", "codes": [[1]]}, USER),
                "messages[0].codes: expected audio or latents (frames of this model are latents), got codes",
            ),
            (
                asked("a", pcm=np.resize([0.5, -0.5], 6000).astype(np.float32), sample_rate=16000),
                "messages[0].audio: expected at least 0.4 s, got 0.3750 s",
            ),
            (
                talk(USER, {"role": "assistant", "audio": "pcm_in"}, USER)
                | {"pcm_in": np.zeros(48_000, np.float32), "sample_rate": 24_000},
                "messages[1].audio: expected a recording of a voice, got silence",
            ),
            (heard(USER, latents={"steps": 1}), "options.latents.steps: expected an integer in [2, 50], got 1"),
            (heard(USER, guidance_scale=-1), "options.guidance_scale: expected a number in [0.0"),
            (heard(USER, guidance={"policy": "adaptive"}), "options.guidance.policy: expected 'always'"),
            (heard(USER, output={"codes": True}), "options.output.codes: expected false"),
        ],
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
        conformance={},
        conforming_size="plain",
        conforms_by_night=True,
    )

    def test_scales_are_multiplied_into_the_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        release = SmallRelease.written(tmp_path / "scaled", "scaled", write)
        written = release.weights
        assert "--dtype" not in capsys.readouterr().out, "other dtypes are refused"
        published = load_file(release.folder / MODEL)
        record = config_at(release.checkpoint)
        lm = config("scaled")["lm_config"]
        table = written["model.embed_tokens.weight"]
        assert len(table) == VoxCpmVocabulary.from_record(record[VOCABULARY]).vocab_size == NUM_TOKENS + 3
        torch.testing.assert_close(table[:NUM_TOKENS], published["base_lm.embed_tokens.weight"] * lm["scale_emb"])
        assert not table[NUM_TOKENS:].any()
        for ours, name, layers in (
            ("model.layers.2.", "base_lm.layers.2.", 3),
            ("model.layers.4.", "residual_lm.layers.1.", 2),
            ("patches.transformer.layers.0.", "feat_encoder.encoder.layers.0.", 2),
            ("head.transformer.layers.1.", "feat_decoder.estimator.decoder.layers.1.", 3),
        ):
            scale = lm["scale_depth"] / math.sqrt(layers)
            for tensor in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                torch.testing.assert_close(written[f"{ours}{tensor}"], published[f"{name}{tensor}"] * scale)
            assert written[f"{ours}mlp.up_proj.weight"].equal(published[f"{name}mlp.up_proj.weight"])
        rope = record["long_rope"]
        assert rope["factors"] == lm["rope_scaling"]["long_factor"]
        assert rope["scale"] == math.sqrt(1 + math.log(2) / math.log(256))

    def test_codec_may_be_a_safetensors_file(self, release: SmallRelease, copied: SmallRelease) -> None:
        codec = copied.folder / CODEC
        stored = torch.load(codec)["state_dict"]
        save_file(stored, codec.with_suffix(".safetensors"))
        codec.unlink()
        codec.write_bytes(b"not read")
        one, other = (load_file(each.checkpoint / "codec" / "model.safetensors") for each in (release, copied))
        assert one.keys() == other.keys()
        assert all(tensor.equal(other[name]) for name, tensor in one.items())
        norm = stored["decoder.model.1.weight_v"].flatten(1).norm(dim=1)[:, None, None]
        expected = stored["decoder.model.1.weight_v"] / norm * stored["decoder.model.1.weight_g"]
        torch.testing.assert_close(one["decoder.widen.conv.weight"], expected)
        bias = stored["decoder.sr_cond_model.2.bias_embed.weight"]
        assert one["decoder.blocks.0.offset"].equal(bias[3]), "of 48 kHz"

    def test_incomplete_releases_are_refused(self, copied: SmallRelease) -> None:
        expected = "--dtype: expected float32 (latents are fed back in float32), got bfloat16"
        assert_refused([*copied.arguments, "--dtype", "bfloat16"], copied.folder / "out", expected)
        (copied.folder / CODEC).unlink()
        copied.assert_refused("expected the codec as audiovae.safetensors or audiovae.pth, got neither")
        (copied.folder / self.case.config).unlink()
        copied.assert_refused("--config: expected the release's config.json, got none")

    def test_symlink_to_an_outside_codec_is_refused(self, copied: SmallRelease) -> None:
        (copied.folder / CODEC).rename(copied.folder / "audiovae.pth")
        (copied.folder / CODEC).symlink_to(copied.folder / "audiovae.pth")
        copied.assert_refused(f"{Path(CODEC).name}: expected a file of this release, got a link to")

    @pytest.mark.parametrize("mode", MODES)
    def test_rows_match_the_authors(self, release: SmallRelease, mode: str) -> None:
        expected = reply("plain", mode)
        prompt = release.preprocessor.prepare(request(mode))
        assert prompt.rows[:, 0].tolist() == np.where(expected.is_audio, FRAME, expected.text).tolist()
        np.testing.assert_allclose(latents_of(prompt.rows[:, 1:]), expected.latents_before, atol=LATENT_TOLERANCE)
        assert prompt.num_reference_rows == (3 if expected.is_audio[-1] else 0)

    def test_system_turn_transcript_prompts_a_continuation(self, release: SmallRelease) -> None:
        """The prompt equals that of an earlier reply with this transcript."""
        turns = [{"role": "system", "audio": "audio", "text": PROMPT_TEXT}, {"role": "user", "text": TEXT}]
        prompt = release.preprocessor.prepare(RawRequest(messages=json.dumps(turns), audio=wave_file("prompt")))
        assert prompt.rows.tolist() == release.preprocessor.prepare(request("continuation")).rows.tolist()

    @pytest.mark.parametrize("mode", ["reference", "continuation"])
    def test_recordings_may_be_given_as_latents(self, release: SmallRelease, mode: str) -> None:
        expected = release.preprocessor.prepare(request(mode)).rows
        data = base64.b64encode(expected[expected[:, 0] == FRAME, 1:].T.tobytes()).decode()
        turns: list[dict[str, Any]] = [{"role": "system", "latents": data}, {"role": "user", "text": TEXT}]
        if mode == "continuation":
            turns[0]["text"] = PROMPT_TEXT
        assert release.preprocessor.prepare(RawRequest(messages=json.dumps(turns))).rows.tolist() == expected.tolist()

    def test_multi_character_chinese_tokens_are_split(self, release: SmallRelease) -> None:
        tokenizer = TextTokenizer.at(release.checkpoint, spells_bytes=False)
        ids = {token: token_id for token_id, token in tokenizer.tokens.items()}
        assert ids["你好"] in tokenizer.encode("a你好")
        splitting = VoxCpmTokenizer(tokenizer)
        assert splitting.encode("a你好")[-2:] == [ids["你"], ids["好"]]
        assert splitting.encode("the a") == tokenizer.encode("the a")

    def test_text_is_joined_to_one_line_and_limits_the_reply_length(self, release: SmallRelease) -> None:
        one, other = (release.preprocessor.prepare(RawRequest(text=text)) for text in ("a\n\n b", "a b"))
        assert one.rows.tolist() == other.rows.tolist()
        assert one.rows[-1, 0] == AUDIO_START
        assert one.sampling.audio.max_rows == 6 * (len(one.rows) - 1) + 10
        assert one.sampling.audio.min_rows == 3
        continued = release.preprocessor.prepare(replace(request("continuation"), options=None))
        zero = release.preprocessor.prepare(RawRequest(text=TEXT))
        assert continued.sampling.audio.max_rows == zero.sampling.audio.max_rows, "of the text to speak alone"

    def test_a_description_precedes_the_text(self, release: SmallRelease) -> None:
        described = release.preprocessor.prepare(RawRequest(text="hello", options='{"instruct": " a low voice "}'))
        assert (
            described.rows.tolist() == release.preprocessor.prepare(RawRequest(text="(a low voice)hello")).rows.tolist()
        )

    def test_defaults_and_options(self, release: SmallRelease) -> None:
        latents = release.preprocessor.prepare(RawRequest(text="a")).sampling.latents
        assert latents is not None
        assert (latents.steps, latents.tail_rows, latents.guidance_scale) == (10, 1, 2.0)
        options = '{"latents": {"steps": 5}, "guidance": {"scale": 3.5}}'
        sampling = release.preprocessor.prepare(RawRequest(text="a", options=options)).sampling
        assert sampling.latents is not None
        assert (sampling.latents.steps, sampling.latents.guidance_scale, sampling.has_pair) == (5, 3.5, False)

    def test_voxcpm2_reference_is_enclosed_by_markers(self, release: SmallRelease) -> None:
        ids = release.preprocessor.prepare(request("reference")).rows[:, 0].tolist()
        number = 1 + RECORDINGS["reference"] // 2560
        assert ids[: number + 2] == [REFERENCE_START, *[FRAME] * number, REFERENCE_END]

    @pytest.mark.engine
    @pytest.mark.nightly
    def test_two_ranks_are_close_to_the_authors(self, release: SmallRelease) -> None:
        """Sums over ranks differ in the last bits from those of a single rank, but are bit-identical in every batch."""
        from tests.engine.forking import forked_processes

        prompts = {mode: release.preprocessor.prepare(request(mode)) for mode in MODES}
        with forked_processes():
            engine = self.start_engine(release.checkpoint, max_model_len=128, tensor_parallel_size=2)
        with engine:
            together = engine.run(prompts)
            for mode, prompt in prompts.items():
                rows = engine.run({mode: prompt})[mode].rows
                assert together[mode].rows == rows
                assert_near_authors(release, mode, np.array(rows, np.int64))

    @pytest.mark.engine
    @pytest.mark.nightly
    @pytest.mark.parametrize("options", [{}, {"async_scheduling": True}, {"enable_prefix_caching": False}], ids=str)
    def test_published_width_latents_are_batch_invariant(self, tmp_path: Path, options: dict[str, Any]) -> None:
        """Numbers of steps and guidance scales differ by request."""
        release = SmallRelease.written(tmp_path / "wide", "wide", write)
        prompts = {mode: release.preprocessor.prepare(request(mode)) for mode in MODES}
        for index, (steps, scale) in enumerate(((2, 1.0), (5, 3.0), (10, 1.0), (50, 0.0))):
            inputs = asked("a b " * (1 + index), latents={"steps": steps}, guidance_scale=scale, audio={"max_rows": 14})
            prompt = release.preprocessor.prepare(RawRequest(**inputs))
            prompts[f"{steps} steps"] = replace(prompt, sampling=replace(prompt.sampling, seed=index))
        alone = same_in_batches(release.checkpoint, prompts, **options)
        firsts = {tuple(answer.rows[0]) for answer in alone.values()}
        assert len(firsts) == len(prompts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_text_ids": 104}, "num_text_ids must be above 104"),
        ({"num_latents": 0}, "a patch must have 1 to 4096 words, got 0"),
        ({"num_latents": -4, "num_numbers": -8}, "a patch must have 1 to 4096 words, got 32"),
        ({"num_latents": 1 << 20, "num_numbers": 1 << 20}, "a patch must have 1 to 4096 words"),
    ],
)
def test_implausible_vocabulary_sizes_are_refused(change: dict[str, int], message: str) -> None:
    record = VoxCpmVocabulary().to_record() | change
    with pytest.raises(CheckpointError, match=message):
        read_family({FAMILY: "voxcpm2", VOCABULARY: record})


@pytest.mark.parametrize(
    ("alphabet", "phonemes", "expected"),
    [("cmu", "HH AH0 L OW1", "{HH AH0 L OW1}"), ("pinyin", "ni3 hao3", "{ni3}{hao3}")],
)
def test_phonemes_are_written_in_braces(alphabet: str, phonemes: str, expected: str) -> None:
    family = read_family({FAMILY: "voxcpm2"})
    assert spelling(DictionaryEntry("a", phonemes, alphabet), family) == expected


def test_characters_without_a_token_are_unknown() -> None:
    tokens = {0: "<unk>", 1: "你好", 2: "▁你好", 3: "你"}
    tokenizer: Any = SimpleNamespace(tokens=tokens, encode=lambda text: [1, 2, 3])
    assert VoxCpmTokenizer(tokenizer).encode("") == [3, 0, 3, 0, 3]
    del tokens[0]
    with pytest.raises(CheckpointError, match="expected a token for each character of '你好', or <unk>"):
        VoxCpmTokenizer(tokenizer)
