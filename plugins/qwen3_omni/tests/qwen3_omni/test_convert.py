"""Conversion of Qwen3-Omni: every tensor is read or left out by name, and mismatches are reported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plugins.qwen3_omni.lab.random_qwen3_omni import small_config, text_only_config, thinker_config, write_release
from plugins.qwen3_omni.tests.published_qwen3_omni import command
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import convert
from stretto.codecs.base import Window, load_codec
from stretto.convert.command import main
from stretto.convert.make_repository import main as make_repository
from stretto.family.plugin import config_at, family_at
from stretto.family.served import speaking_folder
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts
from tests.refused_conversion import Edit, Refuses, edited

EXPERT = "thinker.model.layers.1.mlp.experts.5.down_proj.weight"
FIRST = "model-00001-of-00002.safetensors"


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
    codec = load_codec("qwen3_omni", folder)
    window = Window(torch.zeros(2, 1, 3, dtype=torch.int64), 0, 0, torch.zeros(2), codec.initial_state(2))
    pcm, _ = codec.decode(window)
    assert pcm.shape == (2, codec.spec.num_samples(3, 0))
    assert not pcm.any()
    assert codec.spec.input_rate == 16_000
    assert make_repository(["--checkpoint", str(folder), "--out", str(tmp_path / "served")]) == 0


def test_long_recordings_are_convolved_in_parts(tmp_path: Path) -> None:
    assert config_at(convert(tmp_path, text_only_config()))["audio_config"]["conv_chunksize"] == 32


def test_whole_release_can_be_served(tmp_path: Path) -> None:
    assert make_repository(["--checkpoint", str(convert(tmp_path)), "--out", str(tmp_path / "served")]) == 0


def test_config_of_transformers_5_is_converted(tmp_path: Path) -> None:
    """Its `rope_parameters` replace `rope_scaling` and `rope_theta`."""
    before = convert(tmp_path)
    with edited(tmp_path / "release" / "config.json") as config:
        text = config["thinker_config"]["text_config"]
        text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    assert main(command(tmp_path / "release", tmp_path / "after")) == 0
    assert config_at(tmp_path / "after") == config_at(before)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda config: config.update(model_type="qwen3_tts"),
            "model_type: expected 'qwen3_omni_moe', got 'qwen3_tts'",
        ),
        (lambda config: config.pop("talker_config"), "talker_config is missing"),
        (
            lambda config: (config.pop("talker_config"), config.pop("enable_audio_output")),
            "unknown: code2wav.",
        ),
        (lambda config: config.update(enable_audio_output=False), "unknown: code2wav."),
        (
            lambda config: config["thinker_config"].update(audio_token_id=318),
            "thinker_config.audio_token_id: expected 316, got 318",
        ),
        (
            lambda config: config["thinker_config"]["text_config"].update(shared_expert_intermediate_size=8),
            "thinker_config.text_config.shared_expert_intermediate_size: expected 0, got 8",
        ),
        (
            lambda config: config["thinker_config"]["text_config"].update(mlp_only_layers=[1]),
            "thinker_config.text_config.mlp_only_layers: expected a list of 0 to 0 values, got [1]",
        ),
        (
            lambda config: config["thinker_config"]["text_config"].update(tie_word_embeddings=True),
            "thinker_config.text_config.tie_word_embeddings: expected False, got True",
        ),
        (
            lambda config: config["thinker_config"]["text_config"]["rope_scaling"].update(mrope_section=[8, 4, 2]),
            "mrope_section: expected integers with sum 16, half the head_dim, got [8, 4, 2]",
        ),
        (
            lambda config: config["thinker_config"]["text_config"].update(num_experts=7),
            "missing: thinker.model.layers.0.mlp.experts.6.down_proj.weight",
        ),
        (
            lambda config: config["talker_config"].update(speaker_id={"Ethan": 1, "ethan": 2, "Aiden": 3}),
            "talker_config.speaker_id: expected names that differ in lower case, got 'Aiden, Ethan, ethan'",
        ),
        (
            lambda config: config["talker_config"].update(speaker_id={}),
            "talker_config.speaker_id: expected at least one voice, got none",
        ),
        (
            lambda config: config["talker_config"].update(
                accept_hidden_layer=config["thinker_config"]["text_config"]["num_hidden_layers"]
            ),
            "accept_hidden_layer: expected 0 or a layer above the first 2, which add rows of images, below 4, got 4",
        ),
        (
            lambda config: config["talker_config"].update(accept_hidden_layer=2),
            "accept_hidden_layer: expected 0 or a layer above the first 2, which add rows of images, below 4, got 2",
        ),
        (
            lambda config: config["thinker_config"]["audio_config"].update(output_dim=64),
            "thinker_config.audio_config.output_dim: expected 96, got 64",
        ),
        (
            lambda config: config["thinker_config"]["audio_config"].pop("n_window"),
            "thinker_config.audio_config.n_window is missing",
        ),
        (
            lambda config: config["thinker_config"]["audio_config"].update(n_window_infer=150),
            "n_window_infer must be a multiple of 2 * n_window, got 150 and 50",
        ),
        (
            lambda config: config["thinker_config"]["vision_config"].update(out_hidden_size=64),
            "thinker_config.vision_config.out_hidden_size: expected 96, got 64",
        ),
        (
            lambda config: config["thinker_config"]["vision_config"].update(deepstack_visual_indexes=[0, 2]),
            "deepstack_visual_indexes: expected different layers in [0, 2), at most 4, got [0, 2]",
        ),
        (
            lambda config: config["thinker_config"]["vision_config"].update(deepstack_visual_indexes=[1, 1]),
            "deepstack_visual_indexes: expected different layers in [0, 2), at most 4, got [1, 1]",
        ),
        (
            lambda config: config["thinker_config"]["vision_config"].update(hidden_act="relu"),
            "thinker_config.vision_config.hidden_act: expected 'gelu_pytorch_tanh', got 'relu'",
        ),
        (
            lambda config: config["thinker_config"].update(image_token_id=318),
            "thinker_config.image_token_id: expected 317, got 318",
        ),
        (
            lambda config: config["thinker_config"]["audio_config"].update(d_model="wide"),
            "thinker_config.audio_config.d_model: expected an integer in [1, 1048575], got 'wide'",
        ),
    ],
)
def test_unsupported_config_is_refused(tmp_path: Path, refuses: Refuses, edit: Edit, message: str) -> None:
    folder = write_release(tmp_path / "release")
    with edited(folder / "config.json") as config:
        edit(config)
    refuses(command(folder, tmp_path / "out"), message)


def test_error_names_missing_experts_and_unknown_tensors(tmp_path: Path, refuses: Refuses) -> None:
    folder = write_release(tmp_path / "release")
    with edited(folder / FIRST) as tensors:
        tensors["thinker.stranger"] = tensors.pop(EXPERT)
    refuses(command(folder, tmp_path / "out"), f"missing: {EXPERT}", "unknown: thinker.stranger")


def test_tokenizer_without_markers_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    folder = write_release(tmp_path / "release", small_config())
    with edited(folder / "tokenizer_config.json") as config:
        config["added_tokens_decoder"].pop("323")
    refuses(command(folder, tmp_path / "out"), "without <|vision_end|>")


def test_published_sizes_fit_the_plan(tmp_path: Path, refuses: Refuses) -> None:
    """Sizes of any config are taken from it: a release with the tensors of another one is refused."""
    folder = write_release(tmp_path / "release", text_only_config())
    (folder / "config.json").write_text(json.dumps(text_only_config(thinker_config(layers=5))))
    refuses(command(folder, tmp_path / "out"), "missing: thinker.model.layers.4.input_layernorm.weight")
