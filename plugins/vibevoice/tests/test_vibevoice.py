"""VibeVoice is near a slow reference; conversion is strict, keeps four rows of an untied head, and stores the decoder.

Parts of prompts are tokenized as by the authors, with up to four voices and speaker lines.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from plugins.vibevoice.tests.vibevoice_release import (
    BEGIN,
    END,
    END_OF_REPLY,
    FRAME,
    HOP,
    NUM_IDS,
    NUM_NUMBERS,
    OFFSET,
    SCALE,
    SPECIAL,
    TIGHT,
    Reference,
    make_prompt,
    model_of,
    spread_of,
    write_release,
)
from stretto.errors import CheckpointError
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import VOCABULARY, config_at, read_family
from stretto.family.prompting import stream0_rows
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import RawRequest
from stretto.streams.layout import latents_of
from stretto.testing.limits import asked, talk
from stretto.testing.releases import REMOVED, SmallRelease, assert_refused, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, Scheduling
from stretto_vibevoice.codec import Decoder, TokenizerConfig, published_name
from stretto_vibevoice.vibevoice import PLUGIN
from stretto_vibevoice.vibevoice.convert import IDS, authors_name
from stretto_vibevoice.vibevoice.family import VibeVoiceVocabulary
from tests.engine.nudges import assert_latents_near
from tests.family_suite import FamilySuite

MODEL = "release/model.safetensors"
FACTOR = "model.latent_scaling_factor"
STEM = "model.audio_tower.decoder.stem.conv.conv.weight"
INSTRUCTION = (
    " Transform the text provided by various speakers into speech output, utilizing the distinct voice of each "
    "respective speaker.\n"
)
VOICE = NUM_IDS
VOICE_TURN = {"role": "user", "audio": "audio"}
USER = {"role": "user", "text": "a"}
LINES = {
    "Hello.": [" Speaker 0: Hello.\n"],
    "Speaker 0: a\nSpeaker 1: b": [" Speaker 0: a\n", " Speaker 1: b\n"],
    "Speaker 2: a": [" Speaker 1: a\n"],
    "Speaker 1:\nSpeaker 4: b": [" Speaker 3: b\n"],
    "Speaker: a": [" Speaker 0: Speaker: a\n"],
    "Speaker 1: Hello.\n\nspeaker 2 :Hi, you.\nAnd more.\nSpeaker 1: Bye.": [
        " Speaker 0: Hello.\n",
        " Speaker 1: Hi, you.\n",
        " Speaker 1: And more.\n",
        " Speaker 0: Bye.\n",
    ],
}


def command(folder: Path) -> list[str]:
    return ["vibevoice", "--model", str(folder), "--config", str(folder / "config.json")]


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", size))


def recording(index: int, num_samples: int = 3 * HOP + 5) -> np.ndarray:
    return (0.1 * np.random.default_rng(index).standard_normal(num_samples)).astype(np.float32)


def wave_file(pcm: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, pcm, 24000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def heard(*turns: dict[str, Any], pcm: np.ndarray | None = None, **options: Any) -> dict[str, Any]:
    """Return the inputs for a conversation with the same recording in each turn with audio."""
    files = tuple(wave_file(recording(0) if pcm is None else pcm) for turn in turns if "audio" in turn)
    return talk(*turns, **options) | {"audio": files or None}


def rows_of(release: SmallRelease, *parts: str | int) -> np.ndarray:
    """Return the rows of a sequence of texts, each tokenized separately, and plain ids."""
    tokenizer = TextTokenizer.at(release.checkpoint)
    ids = [token for part in parts for token in (tokenizer.encode(part) if isinstance(part, str) else [part])]
    return stream0_rows(release.family.layout, ids)


def with_voices(release: SmallRelease, number: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return the inputs of a request with this number of recordings, and the expected rows."""
    turns: list[dict[str, str]] = [{"role": "user", "audio": "audio"} for _ in range(number)]
    if number > 1:
        turns[0]["role"] = "system"
    turns.append({"role": "user", "text": f"Speaker {number}: a"})
    recordings = [recording(index, (3 + index) * HOP) for index in range(number)]
    parts: list[str | int] = [INSTRUCTION, " Voice input:\n"]
    for index in range(number):
        parts += [f" Speaker {index}:", BEGIN, *[VOICE] * (3 + index), END, "\n"]
    parts += [" Text input:\n", f" Speaker {number - 1}: a\n", " Speech output:\n", BEGIN]
    rows = rows_of(release, *parts)
    words = [release.preprocessor.codec.encode(pcm).T for pcm in recordings]
    rows[rows[:, 0] == VOICE, 1 : 2 + NUM_NUMBERS] = np.concatenate(words)
    return talk(*turns) | {"audio": tuple(map(wave_file, recordings))}, rows


def prompts(release: SmallRelease) -> Mapping[str, tuple[dict[str, Any], np.ndarray]]:
    """Speakers are numbered from one or zero; recordings become voices in the order of speakers."""
    texts = {
        text: (asked(text), rows_of(release, INSTRUCTION, " Text input:\n", *lines, " Speech output:\n", BEGIN))
        for text, lines in LINES.items()
    }
    return texts | {f"{number} voices": with_voices(release, number) for number in (1, 4)}


@cache
def reference(size: str, index: int) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
    """Return the ids of a reply of the reference, its latents and features, and the effect of nudges on each."""
    model = model_of(size)
    prompt = make_prompt(index)
    sampling = prompt.sampling
    assert sampling.latents is not None
    arguments = prompt.rows, index, sampling.guidance_scale, sampling.latents.steps, sampling.audio.max_rows
    ids, *arrays, lead = Reference(model).reply(*arguments)
    assert lead > 1e-4, index
    nudges = [1e-6 * torch.randn(NUM_NUMBERS, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    nudged = [Reference(model, nudge).reply(*arguments) for nudge in nudges]
    spreads = [
        np.max([spread_of(changed[1 + number], expected) for changed in nudged], 0)
        for number, expected in enumerate(arrays)
    ]
    return ids, arrays, spreads


def assert_near_reference(size: str, index: int, rows: np.ndarray) -> None:
    """Assert that ids are equal, and latents and features agree within a nudge's effect; stretches start afresh."""
    ids, arrays, spreads = reference(size, index)
    assert rows[:, 0].tolist() == ids
    is_frame = rows[:, 0] == FRAME
    generated = latents_of(rows[is_frame, 1:].astype(np.int32))
    for values, expected, spread in zip(
        (generated[:, :NUM_NUMBERS], generated[:, NUM_NUMBERS + 1 :]), arrays, spreads, strict=True
    ):
        assert_latents_near(values, expected, spread)
    begins = np.array([before == BEGIN for before in [BEGIN, *ids[:-1]]])
    assert generated[:, NUM_NUMBERS].tolist() == begins[is_frame].tolist()
    assert not rows[~is_frame, 1:].any()


def assert_ended(rows: np.ndarray) -> None:
    assert rows[-1, 0] == END_OF_REPLY


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Guided with a voice, unguided without, and others that are only compared with themselves alone."""
    compared = (1, 2) if release.size == "long" else (1,)
    return {
        f"r{index}": ExpectedReply(
            make_prompt(index),
            partial(assert_near_reference, release.size, index) if index in compared else assert_ended,
        )
        for index in range(5)
    }


class TestVibeVoice(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        sizes=("long",),
        unneeded_tensors=(FACTOR, "model.latent_bias_factor"),  # the errors of these do not list all missing tensors
        refused_configs=[
            (
                {"model_type": "vibevoice_streaming"},
                "expected VibeVoice 1.5B or 7B, got VibeVoice Realtime 0.5B: convert vibevoice-realtime",
            ),
            ({"tts_backbone_num_hidden_layers": 20}, "expected VibeVoice 1.5B or 7B, got VibeVoice Realtime 0.5B"),
            ({"model_type": "qwen2"}, "model_type: expected 'vibevoice', got 'qwen2'"),
            ({"audio_config.channels": 2}, "audio_config.channels: expected 1, got 2"),
            (
                {"semantic_model_config.downsampling_ratios": [2, 2], "semantic_model_config.depths": [1, 1, 1]},
                "expected 3200 samples, got",
            ),
            ({"diffusion_head_config.hidden_size": 64}, "diffusion_head_config: expected {'hidden"),
            (
                {"diffusion_head_config.hidden_act": "relu"},
                "expected {'hidden_act': 'silu'}, got {'hidden_act': 'relu'}",
            ),
            ({"diffusion_head_config.intermediate_size": 0}, "diffusion_head_config: expected sizes, got"),
            ({"audio_token_id": 9999}, "begin, end, frame and end_of_reply must differ and be below 264"),
            ({"audio_token_id": "x"}, "speech_vocabulary.frame: expected a valid integer, got 'x'"),
            ({"audio_token_id": BEGIN}, "begin, end, frame and end_of_reply must differ"),
            ({"text_config.num_attention_heads": 0}, "to be a multiple of num_attention_heads, got 128 and 0"),
            ({"audio_config": [1]}, "cannot be read as a release of vibevoice"),
            ({"text_config": REMOVED}, "text_config is missing"),
            ({"text_config.num_hidden_layers": 1 << 40}, "num_hidden_layers: expected at most 1024 layers, got"),
            ({"text_config.hidden_size": "wide"}, "invalid parameters for qwen2"),
        ],
        refused_edits=[
            (MODEL, edit, f"{FACTOR}: expected a finite number, not 0 if it is a factor, got {got}")
            for edit, got in (
                (lambda t: t.pop(FACTOR), "nothing"),
                (lambda t: t[FACTOR].fill_(float("nan")), "[nan]"),
                (lambda t: t.update({FACTOR: torch.tensor(1e300, dtype=torch.float64)}), "[1e+300]"),
                (lambda t: t.update({FACTOR: torch.tensor(1j)}), "[1j]"),
                (lambda t: t[FACTOR].fill_(0), "[0.0]"),
            )
        ],
        prompts=prompts,
        refused_inputs=[
            (asked(" \n"), "text: expected text of at least one character"),
            (asked("Speaker 1:\nSpeaker 2: "), "text: expected text of at least one character"),
            (asked("Speaker 5: a"), "text: expected speakers 1 to 4, as there are 4 voices, got speaker 5"),
            (asked("Speaker 0: a\nSpeaker 4: b"), "text: expected speakers 0 to 3, as there are 4 voices, got"),
            (
                heard(VOICE_TURN, USER | {"text": "Speaker 2: a"}),
                "messages[1].text: expected speakers 1 to 1, as there are 1 voices, got speaker 2",
            ),
            (heard(*[VOICE_TURN] * 5, USER), "messages: expected one text, and up to 4 recordings"),
            (heard(USER, USER), "messages: expected one text, and up to 4 recordings"),
            (heard(USER, VOICE_TURN | {"role": "assistant"}, USER), "messages: expected one text, and up to 4"),
            (
                heard(VOICE_TURN, USER, pcm=recording(0, 9000)),
                "messages[0].audio: expected at least 0.4 s, got 0.3750 s",
            ),
            (
                heard({"role": "user", "codes": [[1]]}, USER),
                "messages[0].codes: expected audio or latents (frames of this model are latents), got codes",
            ),
            (heard(USER, latents={"steps": 1}), "options.latents.steps: expected an integer in [2, 50], got 1"),
            (heard(USER, guidance_scale=-1), "options.guidance_scale: expected a number in [0.0"),
            (heard(USER, guidance={"policy": "adaptive"}), "options.guidance.policy: expected 'always'"),
            (
                heard(USER, guidance={"until_s": 2, "policy": "until_s"}),
                "options.guidance.policy: expected 'always'",
            ),
            (heard(USER, output={"codes": True}), "options.output.codes: expected false"),
        ],
        markers=SPECIAL,
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
        conformance={"num_prompts": 20},
        conforming_size="long",
        conforms_by_night=True,
    )

    def test_converted_tensors_match_the_release(self, release: SmallRelease) -> None:
        published = load_file(release.folder / MODEL)
        written = release.weights
        codec = load_file(release.checkpoint / "codec" / "model.safetensors")
        table = written["model.embed_tokens.weight"]
        assert table[:NUM_IDS].equal(published["model.language_model.embed_tokens.weight"])
        assert len(table) == NUM_IDS + 1
        assert not table[NUM_IDS:].any()
        assert "audio_head.weight" not in written, "rows of the table are the head"
        for ours, name in (
            ("acoustic_connector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
            ("semantic_connector.act.weight", "model.semantic_connector.act.weight"),
            ("head.timestep_proj.fc1.weight", "model.diffusion_head.timestep_proj.fc1.weight"),
            (
                "feedback.decoder.conv_layers.1.conv.conv.weight",
                "model.audio_tower.decoder.conv_layers.1.convtr.convtr.weight",
            ),
            (
                "feedback.encoder.conv_layers.1.conv.conv.bias",
                "model.semantic_tokenizer_encoder.conv_layers.1.conv.conv.bias",
            ),
            ("feedback.decoder.stem.conv.conv.weight", STEM),
        ):
            assert written[ours].equal(published[name]), ours
        assert codec["decoder.stem.conv.conv.weight"].equal(published[STEM])
        record = json.loads((release.checkpoint / "codec/config.json").read_text())
        for numbers in (record, config_at(release.checkpoint)["tokenizers"]):
            assert numbers["latent_scaling_factor"] == pytest.approx(SCALE)
            assert numbers["latent_bias_factor"] == pytest.approx(OFFSET)

    def test_duplicate_tied_head_is_omitted(self, copied: SmallRelease) -> None:
        with edited(copied.folder / MODEL) as tensors:
            tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
        assert not {"audio_head.weight", "lm_head.weight"} & set(copied.weights)

    def test_untied_head_keeps_four_rows(self, tmp_path: Path) -> None:
        release = SmallRelease.written(tmp_path / "untied", "untied", write)
        rows = load_file(release.folder / MODEL)["lm_head.weight"][[BEGIN, END, FRAME, END_OF_REPLY]]
        assert release.weights["audio_head.weight"].equal(rows)
        assert not config_at(release.checkpoint)[VOCABULARY]["is_tied"]

    def test_unsupported_dtypes_are_refused(self, copied: SmallRelease) -> None:
        expected = "--dtype: expected float32 (latents are fed back in float32), got bfloat16"
        assert_refused([*copied.arguments, "--dtype", "bfloat16"], copied.folder / "out", expected)

    def test_defaults_and_options(self, release: SmallRelease) -> None:
        prompt = release.preprocessor.prepare(RawRequest(text="a"))
        sampling = prompt.sampling
        assert sampling.latents is not None
        assert (sampling.latents.steps, sampling.guidance_scale, sampling.has_pair) == (10, 1.3, True)
        assert sampling.audio.max_rows == 2 * len(prompt.rows)
        options = {"latents": {"steps": 5}, "guidance": {"scale": 1.0}, "audio": {"max_rows": 9}}
        sampling = release.preprocessor.prepare(RawRequest(**asked("a", **options))).sampling
        assert sampling.latents is not None
        assert (sampling.latents.steps, sampling.has_pair, sampling.audio.max_rows) == (5, False, 9)

    def test_voices_may_be_given_as_latents(self, release: SmallRelease) -> None:
        expected = release.preprocessor.prepare(RawRequest(**heard(VOICE_TURN, USER))).rows
        words = expected[expected[:, 1:].any(1), 1 : 1 + NUM_NUMBERS]
        latents = {"role": "user", "latents": base64.b64encode(words.T.tobytes()).decode()}
        assert release.preprocessor.prepare(RawRequest(**heard(latents, USER))).rows.tolist() == expected.tolist()

    @pytest.mark.engine
    @pytest.mark.nightly
    @pytest.mark.parametrize("options", [{}, {"enable_prefix_caching": False}], ids=str)
    @pytest.mark.parametrize("is_async", [False, True])
    def test_published_width_gives_the_expected_rows(
        self, tmp_path: Path, options: dict[str, Any], is_async: bool
    ) -> None:
        release = SmallRelease.written(tmp_path / "wide", "wide", write)
        scheduling = Scheduling("wide", is_async, True, TIGHT | options)
        self.test_rows_equal_the_expected_ones({"wide": release}, scheduling)

    @pytest.mark.engine
    @pytest.mark.nightly  # by day, test_step_program.py and test_latents.py
    def test_gpu_kernels_give_the_same_replies(
        self, releases: dict[str, SmallRelease], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernels run in Triton's interpreter; both requests of a pair are at different positions."""
        from tests.engine.test_no_sync import as_on_a_gpu

        as_on_a_gpu(monkeypatch)
        self.test_rows_equal_the_expected_ones(releases, Scheduling("long", False, True, TIGHT))

    @pytest.mark.engine
    @pytest.mark.nightly
    def test_untied_head_weights_are_used(self, tmp_path: Path) -> None:
        release = SmallRelease.written(tmp_path / "untied", "untied", write)
        engine = self.start_engine(release.checkpoint, max_model_len=256)
        rows = engine.run({"r1": make_prompt(1)})["r1"].rows
        engine.shutdown()
        assert [row[0] for row in rows] == reference("untied", 1)[0]


def test_several_stretches_of_audio_are_compared() -> None:
    pairs = [pair for index in (1, 2) for pair in pairwise(reference("long", index)[0])]
    assert pairs.count((BEGIN, FRAME)) > 1


# Names of the authors' checkpoints as transformers' own converter reads them; `-` is one less than the number.
PUBLISHED_NAMES = (
    (r"(semantic|acoustic)_tokenizer\.encoder\.downsample_layers\.0\.0\.conv\.", r"\1_encoder.stem.conv."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.stages\.0\.", r"\1_encoder.stem.stage."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.downsample_layers\.(\d+)\.0\.conv\.", r"\1_encoder.conv_layers.-.conv."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.stages\.(\d+)\.", r"\1_encoder.conv_layers.-.stage."),
    (r"(semantic|acoustic)_tokenizer\.encoder\.head\.conv\.", r"\1_encoder.head."),
    (r"acoustic_tokenizer\.decoder\.upsample_layers\.0\.0\.conv\.conv\.", r"audio_tower.decoder.stem.conv.conv."),
    (r"acoustic_tokenizer\.decoder\.stages\.0\.", r"audio_tower.decoder.stem.stage."),
    (r"()acoustic_tokenizer\.decoder\.upsample_layers\.(\d+)\.0\.", r"audio_tower.decoder.conv_layers.-."),
    (r"()acoustic_tokenizer\.decoder\.stages\.(\d+)\.", r"audio_tower.decoder.conv_layers.-.stage."),
    (r"acoustic_tokenizer\.decoder\.head\.conv\.", r"audio_tower.decoder.head."),
    (r"semantic_encoder\.", "semantic_tokenizer_encoder."),
    (r"acoustic_encoder\.", "audio_tower.encoder."),
    (r"mixer\.conv\.conv\.conv\.", "mixer.conv."),
    (r"prediction_head\.t_embedder\.mlp\.0\.", "diffusion_head.timestep_proj.fc1."),
    (r"prediction_head\.t_embedder\.mlp\.2\.", "diffusion_head.timestep_proj.fc2."),
    (r"prediction_head\.layers\.(\d+)\.adaLN_modulation\.1\.", r"diffusion_head.layers.\1.linear."),
    (r"prediction_head\.final_layer\.adaLN_modulation\.1\.", "diffusion_head.final_layer.linear_1."),
    (r"prediction_head\.final_layer\.linear\.", "diffusion_head.final_layer.linear_2."),
    (r"prediction_head\.", "diffusion_head."),
    (r"acoustic_connector\.", "multi_modal_projector."),
    (r"(multi_modal_projector|semantic_connector)\.fc([12])\.", r"\1.linear_\2."),
    (r"(multi_modal_projector|semantic_connector)\.norm\.", r"\1.act."),
    (r"speech_(scaling|bias)_factor", r"latent_\1_factor"),
)


def published_name_of(name: str, published_names: Sequence[tuple[str, str]] = PUBLISHED_NAMES) -> str:
    for pattern, replacement in published_names:
        match = re.search(pattern, name)
        if match is not None:
            if "-" in replacement:
                replacement = replacement.replace("-", str(int(match[2]) - 1))
            name = name[: match.start()] + match.expand(replacement) + name[match.end() :]
    return name


def authors_network(sizes: Mapping[str, Any], size: int, **others: Any) -> dict[str, Any]:
    """Return a tokenizer's section of the authors' config.json.

    Args:
        sizes: Section in transformers format.
    """
    ratios = sizes["downsampling_ratios"][::-1]
    filters = sizes["num_filters"]
    encoder = {"vae_dim": size, "encoder_ratios": ratios, "encoder_n_filters": filters, "causal": True}
    depths = "-".join(map(str, sizes["depths"]))
    decoder = {"decoder_ratios": ratios, "decoder_n_filters": filters, "decoder_depths": None}
    return {**encoder, **decoder, "channels": 1, "layernorm_eps": 1e-5, "encoder_depths": depths, **others}


def authors_release(folder: Path, kind: str) -> Path:
    """Write a release in the authors' layout, including its tokenizer, and return its folder."""
    release = write_release(folder, kind)
    with edited(release / "model.safetensors") as tensors:
        renamed = {authors_name(name): tensor for name, tensor in tensors.items()}
        assert {published_name_of(name) for name in renamed} == set(tensors)
        assert len(renamed) == len(tensors)
        tensors.clear()
        tensors.update(renamed)
    record = json.loads((release / "config.json").read_text())

    head = record["diffusion_head_config"]
    config = {
        "model_type": "vibevoice",
        "decoder_config": record["text_config"] | {"tie_word_embeddings": kind != "untied"},
        "acoustic_tokenizer_config": authors_network(record["audio_config"], 8, fix_std=0.4, std_dist_type="gaussian"),
        "semantic_tokenizer_config": authors_network(
            record["semantic_model_config"], 12, fix_std=0, std_dist_type="none"
        ),
        "diffusion_head_config": {
            "hidden_size": head["hidden_size"],
            "latent_size": head["latent_size"],
            "rms_norm_eps": 1e-5,
            "head_layers": head["num_hidden_layers"],
            "head_ffn_ratio": 3.0,
            "prediction_type": "v_prediction",
            "ddpm_beta_schedule": "cosine",
            "ddpm_num_steps": 1000,
        },
    }
    (release / "config.json").write_text(json.dumps(config))
    return release


def write_authors(folder: Path, size: str) -> list[str]:
    return command(authors_release(folder / "release", size))


class TestAuthorsLayout(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write_authors,
        sizes=("tied", "untied"),
        unneeded_tensors=("model.speech_scaling_factor", "model.speech_bias_factor"),
        refused_configs=[
            ({f"acoustic_tokenizer_config.{name}": value}, f"acoustic_tokenizer_config.{message}")
            for name, value, message in (
                ("causal", False, "causal: expected True, got False"),
                ("decoder_ratios", [2], "decoder_ratios: expected ["),
            )
        ]
        + [
            ({"semantic_tokenizer_config.layernorm": "LN"}, "semantic_tokenizer_config.layernorm: expected 'RMSNorm'"),
            ({"semantic_tokenizer_config.encoder_depths": "3-x"}, "downsampling_ratios and depths must be lists, got"),
        ],
        needed_tokens=[*IDS.values()],
    )

    def test_transformers_layout_gives_the_same_checkpoint(
        self, releases: dict[str, SmallRelease], tmp_path: Path
    ) -> None:
        for size, release in releases.items():
            other = SmallRelease.written(tmp_path / size, size, write)
            assert release.weights.keys() == other.weights.keys()
            assert all(tensor.equal(other.weights[name]) for name, tensor in release.weights.items())
            records = [config_at(one.checkpoint) for one in (release, other)]
            assert records[0] | {"tokenizers": 0} == records[1] | {"tokenizers": 0}
            acoustic, semantic = (
                [TokenizerConfig.from_record(record["tokenizers"][name]) for record in records]
                for name in ("acoustic", "semantic")
            )
            assert acoustic[0] == acoustic[1]
            assert semantic[0] == replace(semantic[1], deviation=0.0), "the semantic tokenizer adds no noise"
            codecs = [load_file(one.checkpoint / "codec" / "model.safetensors") for one in (release, other)]
            assert all(tensor.equal(codecs[1][name]) for name, tensor in codecs[0].items())


def test_tensor_names_match_the_authors_checkpoint() -> None:
    """Names and shapes equal those of the published 1.5B checkpoint, whose decoder has 276 tensors."""
    with torch.device("meta"):
        shapes = {
            authors_name(f"model.audio_tower.{published_name(f'decoder.{name}')}"): list(tensor.shape)
            for name, tensor in Decoder(TokenizerConfig.from_record({})).state_dict().items()
        }
    assert len(shapes) == 276
    for name, shape in (
        ("upsample_layers.0.0.conv.conv.weight", [2048, 64, 7]),
        ("upsample_layers.1.0.convtr.convtr.weight", [2048, 1024, 16]),
        ("upsample_layers.6.0.convtr.convtr.weight", [64, 32, 4]),
        ("head.conv.conv.weight", [1, 32, 7]),
        ("stages.0.0.mixer.conv.conv.conv.weight", [2048, 1, 7]),
        ("stages.5.2.ffn.linear1.weight", [256, 64]),
    ):
        assert shapes[f"model.acoustic_tokenizer.decoder.{name}"] == shape, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_text_ids": 151654}, "must differ and be below 151654"),
        ({"num_text_ids": 1 << 30}, "expected numbers of at most 1048576"),
        ({"end": 151652}, "must differ and be below 151936"),
        ({"begin": -1}, "must differ and be below 151936"),
        ({"num_numbers": 0}, r"num_numbers must be in \[1, 4096\], got 0"),
        ({"num_features": 1 << 20}, r"num_features must be in \[1, 4096\]"),
    ],
)
def test_implausible_vocabulary_sizes_are_refused(change: dict[str, int], message: str) -> None:
    record = VibeVoiceVocabulary().to_record() | change
    with pytest.raises(CheckpointError, match=message):
        read_family({FAMILY: "vibevoice", VOCABULARY: record})
