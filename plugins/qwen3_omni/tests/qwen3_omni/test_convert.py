"""Conversion of Qwen3-Omni: every tensor is read or left out by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plugins.qwen3_omni.lab.random_qwen3_omni import small_config, text_only_config, thinker_config, write_release
from plugins.qwen3_omni.tests.published_qwen3_omni import command
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import convert
from stretto.codecs.base import load_codec
from stretto.convert.make_repository import main as make_repository
from stretto.family.plugin import config_at, family_at
from stretto.family.served import speaking_folder
from stretto.testing.releases import REMOVED, SmallRelease, assert_refused, edited
from stretto.testing.suite import FamilyCase
from stretto_qwen3_omni.qwen3_omni import PLUGIN
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts
from tests.family_suite import FamilySuite

TEXT = small_config()["thinker_config"]["text_config"]
CONFIGS = {"small": small_config(), "text only": text_only_config()}


def write(folder: Path, size: str) -> list[str]:
    return command(write_release(folder / "release", CONFIGS[size]), folder)[:-2]


class TestQwen3Omni(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        weights="release/model-00001-of-00002.safetensors",
        may_be_sharded=False,
        # of transformers 5
        same_configs=[
            {
                "thinker_config.text_config.rope_parameters": TEXT["rope_scaling"] | {"rope_theta": TEXT["rope_theta"]},
                "thinker_config.text_config.rope_scaling": REMOVED,
                "thinker_config.text_config.rope_theta": REMOVED,
            }
        ],
        refused_configs=[
            ({"model_type": "qwen3_tts"}, "model_type: expected 'qwen3_omni_moe', got 'qwen3_tts'"),
            ({"talker_config": REMOVED}, "talker_config is missing"),
            ({"talker_config": REMOVED, "enable_audio_output": REMOVED}, "unknown: code2wav."),
            ({"enable_audio_output": False}, "unknown: code2wav."),
            ({"thinker_config.audio_token_id": 318}, "thinker_config.audio_token_id: expected 316, got 318"),
            (
                {"thinker_config.text_config.shared_expert_intermediate_size": 8},
                "thinker_config.text_config.shared_expert_intermediate_size: expected 0, got 8",
            ),
            (
                {"thinker_config.text_config.mlp_only_layers": [1]},
                "thinker_config.text_config.mlp_only_layers: expected a list of 0 to 0 values, got [1]",
            ),
            (
                {"thinker_config.text_config.tie_word_embeddings": True},
                "thinker_config.text_config.tie_word_embeddings: expected False, got True",
            ),
            (
                {"thinker_config.text_config.rope_scaling.mrope_section": [8, 4, 2]},
                "mrope_section: expected integers with sum 16, half the head_dim, got [8, 4, 2]",
            ),
            (
                {"thinker_config.text_config.num_experts": 7},
                "missing: thinker.model.layers.0.mlp.experts.6.down_proj.weight",
            ),
            (
                {"talker_config.speaker_id": {"Ethan": 1, "ethan": 2, "Aiden": 3}},
                "talker_config.speaker_id: expected names that differ in lower case, got 'Aiden, Ethan, ethan'",
            ),
            ({"talker_config.speaker_id": {}}, "talker_config.speaker_id: expected at least one voice, got none"),
            (
                {"talker_config.accept_hidden_layer": 4},
                "expected 0 or a layer above the first 2, which add rows of images, below 4, got 4",
            ),
            (
                {"talker_config.accept_hidden_layer": 2},
                "expected 0 or a layer above the first 2, which add rows of images, below 4, got 2",
            ),
            (
                {"thinker_config.audio_config.output_dim": 64},
                "thinker_config.audio_config.output_dim: expected 96, got 64",
            ),
            ({"thinker_config.audio_config.n_window": REMOVED}, "thinker_config.audio_config.n_window is missing"),
            (
                {"thinker_config.audio_config.n_window_infer": 150},
                "n_window_infer must be a multiple of 2 * n_window, got 150 and 50",
            ),
            (
                {"thinker_config.vision_config.out_hidden_size": 64},
                "thinker_config.vision_config.out_hidden_size: expected 96, got 64",
            ),
            (
                {"thinker_config.vision_config.deepstack_visual_indexes": [0, 2]},
                "deepstack_visual_indexes: expected different layers in [0, 2), at most 4, got [0, 2]",
            ),
            (
                {"thinker_config.vision_config.deepstack_visual_indexes": [1, 1]},
                "deepstack_visual_indexes: expected different layers in [0, 2), at most 4, got [1, 1]",
            ),
            (
                {"thinker_config.vision_config.hidden_act": "relu"},
                "thinker_config.vision_config.hidden_act: expected 'gelu_pytorch_tanh', got 'relu'",
            ),
            ({"thinker_config.image_token_id": 318}, "thinker_config.image_token_id: expected 317, got 318"),
            (
                {"thinker_config.audio_config.d_model": "wide"},
                "thinker_config.audio_config.d_model: expected an integer in [1, 1048575], got 'wide'",
            ),
            ({"model_type": "qwen3_tts"}, "model_type: expected 'qwen3_omni_moe', got 'qwen3_tts'"),
            ({"talker_config.speaker_id": {"ethan": -1}}, "speaker_id.ethan: expected an id in [0, 1056)"),
            ({"talker_config.num_code_groups": 3}, "num_code_groups: expected 4, got 3"),
            ({"talker_config.text_config.vocab_size": 2000}, "expected 32 codes and 1024 markers"),
            (
                {"talker_config.code_predictor_config.hidden_size": 32},
                "talker_config.code_predictor_config.hidden_size: expected 64, got 32",
            ),
            ({"talker_config.text_config.num_experts": 7}, "missing: talker.model.layers.0"),
            (
                {"code2wav_config.decoder_dim": 30},
                "code2wav_config: decoder_config.decoder_dim must be a multiple of 16, got 30",
            ),
            (
                {"code2wav_config.codebook_size": 64},
                "code2wav_config: expected 4 codebooks of 32 codes, the talker's, got (4, 64)",
            ),
            (
                {"thinker_config.audio_token_id": 330},
                "thinker_config.audio_token_id: expected an id in [0, 330), got 330",
            ),
        ],
        refused_edits=[
            (
                "release/model-00002-of-00002.safetensors",
                lambda tensors: tensors.update({"talker.stranger": torch.zeros(2)}),
                "unknown: talker.stranger",
            ),
            (
                "release/model-00002-of-00002.safetensors",
                lambda tensors: tensors.pop("talker.model.layers.1.mlp.experts.5.down_proj.weight"),
                "missing: talker.model.layers.1.mlp.experts.5.down_proj.weight",
            ),
            (
                "release/tokenizer_config.json",
                lambda config: config["added_tokens_decoder"].pop("323"),
                "without <|vision_end|>",
            ),
        ],
        has_usual_requests=False,
    )

    def test_sizes_are_taken_from_the_config(self, tmp_path: Path) -> None:
        """A release with the tensors of another one is refused."""
        release = SmallRelease.written(tmp_path / "text only", "text only", write)
        with edited(release.folder / self.case.config) as record:
            record.update(text_only_config(thinker_config(layers=5)))
        release.assert_refused("missing: thinker.model.layers.4.input_layernorm.weight")

    def test_config_of_transformers_5_gives_the_same_talker(self, release: SmallRelease, copied: SmallRelease) -> None:
        """Its `rope_parameters` and `num_local_experts` replace older keys."""
        with edited(copied.folder / self.case.config) as config:
            talker = config["talker_config"]
            text = talker["text_config"]
            text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
            text["num_local_experts"] = text.pop("num_experts")
            for section in (talker["code_predictor_config"], config["code2wav_config"]):
                section["rope_parameters"] = {"rope_theta": section.pop("rope_theta"), "rope_type": "default"}
        before = release.checkpoint / "talker"
        after = copied.checkpoint / "talker"
        assert config_at(after) == config_at(before)
        for name in ("model-00001-of-00001.safetensors", "codec/model.safetensors"):
            assert (after / name).read_bytes() == (before / name).read_bytes()
        load_codec("qwen3_omni", after)

    def test_extracting_an_unsupported_codec_from_the_release_is_refused(self, copied: SmallRelease) -> None:
        expected = "a codec among the release's tensors must be one of mimi, xcodec; got qwen3_omni"
        assert_refused([*copied.arguments, "--codec-from-model"], copied.folder / "out", expected)


def test_every_tensor_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors keep their values; the encoder of images is named for its purpose."""
    folder = convert(tmp_path)
    said = capsys.readouterr().out
    release = {}
    for path in (tmp_path / "release").glob("*.safetensors"):
        release |= load_file(path)
    assert "not needed" not in said
    assert "codec/ is missing" not in said
    written = {
        f"thinker.{name.replace('image_encoder.tower.', 'visual.')}": tensor
        for name, tensor in load_file(next(folder.glob("*.safetensors"))).items()
    }
    assert written.keys() == {name for name in release if name.startswith("thinker.")}
    assert all(torch.equal(tensor, release[name]) for name, tensor in written.items())


def test_talker_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    folder = convert(tmp_path)
    talker = TalkerPrompts.at(folder / "talker").family
    assert talker == family_at(folder / "talker")
    assert {*talker.voices} == {*family_at(folder).voices}
    assert not (folder / "talker" / "tokenizer.json").exists()


def test_codec_is_that_of_the_talker(tmp_path: Path) -> None:
    codec = load_codec("qwen3_omni", speaking_folder(convert(tmp_path)))
    assert (codec.spec.sample_rate, codec.spec.input_rate) == (24_000, 16_000)


def test_text_only_release_is_served_with_a_silent_codec(tmp_path: Path) -> None:
    folder = convert(tmp_path, text_only_config())
    assert not (folder / "talker").exists()
    assert family_at(folder).codec == "soundless"
    assert make_repository(["--checkpoint", str(folder), "--out", str(tmp_path / "served")]) == 0


def test_long_recordings_are_convolved_in_parts(tmp_path: Path) -> None:
    assert config_at(convert(tmp_path, text_only_config()))["audio_config"]["conv_chunksize"] == 32


def test_whole_release_can_be_served(tmp_path: Path) -> None:
    assert make_repository(["--checkpoint", str(convert(tmp_path)), "--out", str(tmp_path / "served")]) == 0


def test_talker_settings_of_a_release_are_its_defaults(tmp_path: Path) -> None:
    """The other settings are not used: in transformers, the thinker ignores the release's."""
    release = SmallRelease.written(tmp_path / "a", "small", write)
    record = {"do_sample": True, "temperature": 0.65, "top_k": 33, "top_p": 0.77}
    record |= {"talker_temperature": 0.5, "talker_top_k": 11, "talker_repetition_penalty": 1.3}
    (release.folder / "release/generation_config.json").write_text(json.dumps(record))
    assert release.family.tasks[0].sampling.text.temperature == 0.0
    sampling = family_at(release.checkpoint / "talker").tasks[0].sampling
    audio = sampling.audio
    assert (audio.temperature, audio.top_k, audio.top_p) == (0.5, 11, 1.0)
    assert sampling.repetition_penalty == 1.3
