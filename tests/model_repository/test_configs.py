"""The model configs match the schema, and the ensemble connects tensors by equal names."""

from typing import Any

import pytest

from stretto.families.tiny import PLUGIN
from stretto.families.tiny.family import TINY
from stretto.triton_io.tensors import ADAPTERS, CLONING_REQUEST, MODELS, REQUEST, TensorSpec
from stretto_client import ModelProfile
from stretto_contract.speech_checks import USUAL_SIGNALS
from tests.model_repository.pbtxt import ROOT, parse, read_config


def as_spec(entry: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    return entry["name"][0], entry["data_type"][0].removeprefix("TYPE_"), tuple(entry["dims"])


def plain(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, spec.dtype, spec.dims) for spec in specs]


@pytest.mark.parametrize("model", MODELS)
def test_triton_config_matches_the_schema(model: str) -> None:
    config = read_config(model)
    assert config["name"] == [model]
    assert config["max_batch_size"] == [0]
    assert [as_spec(entry) for entry in config["input"]] == plain(MODELS[model].inputs)
    assert [as_spec(entry) for entry in config["output"]] == plain(MODELS[model].outputs)
    assert [entry.get("optional") == ["true"] for entry in config["input"]] == [
        spec.optional for spec in MODELS[model].inputs
    ]


@pytest.mark.parametrize("model", MODELS)
def test_transaction_policy_matches_the_schema(model: str) -> None:
    policy = read_config(model).get("model_transaction_policy", [{"decoupled": ["false"]}])
    assert (policy[0]["decoupled"] == ["true"]) is MODELS[model].is_decoupled


def test_repository_contains_exactly_these_models() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} == set(MODELS)


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"speech"}))
def test_each_model_has_one_instance_and_no_dynamic_batching(model: str) -> None:
    config = read_config(model)
    assert config["backend"] == ["python"]
    assert [group["count"] for group in config["instance_group"]] == [[1]]
    assert "dynamic_batching" not in config


def test_ensemble_maps_tensors_to_identical_names() -> None:
    steps = read_config("speech")["ensemble_scheduling"][0]["step"]
    assert [step["model_name"][0] for step in steps] == ["preprocessor", "language_model", "acoustic_decoder"]
    for step in steps:
        schema = MODELS[step["model_name"][0]]
        inputs = tuple(spec for spec in schema.inputs if spec not in (*CLONING_REQUEST, ADAPTERS))
        for field, specs in (("input_map", inputs), ("output_map", schema.outputs)):
            names = [spec.name for spec in specs]
            assert [(entry["key"][0], entry["value"][0]) for entry in step[field]] == [(name, name) for name in names]


@pytest.mark.slow
def test_cloning_ensemble_differs_from_speech_in_names_only() -> None:
    """Its inputs are those of the preprocessor, and `pcm` is its only output."""
    from stretto.convert.make_repository import CLONING  # imports transformers

    config = parse(CLONING.format(name="other"))
    speech = read_config("speech")
    assert [as_spec(entry) for entry in config["input"]] == plain(CLONING_REQUEST)
    assert {name for entry in config["input"] for name in entry["optional"]} == {"true"}
    assert [as_spec(entry) for entry in config["output"]] == [("waveform", "FP32", (-1,))]
    for name in ("platform", "max_batch_size", "model_transaction_policy"):
        assert config[name] == speech[name]
    ours, others = (each["ensemble_scheduling"][0]["step"] for each in (config, speech))
    assert ours[0]["input_map"] == [{"key": [spec.name], "value": [spec.name]} for spec in CLONING_REQUEST]
    assert ours[2]["output_map"] == [{"key": ["pcm"], "value": ["waveform"]}]
    ours[0]["input_map"], ours[2]["output_map"] = others[0]["input_map"], others[2]["output_map"]
    assert ours == others
    assert MODELS["preprocessor"].inputs == (*REQUEST, *CLONING_REQUEST)


def test_ensemble_outputs_are_those_of_the_decoder() -> None:
    assert MODELS["speech"].outputs == MODELS["acoustic_decoder"].outputs


def test_repository_models_resolve_to_one_checkpoint() -> None:
    folders = {
        (ROOT / model / read_config(model)["parameters"][0]["value"][0]["string_value"][0]).resolve()
        for model in ("preprocessor", "language_model", "acoustic_decoder")
    }
    assert folders == {ROOT / "language_model" / "1" / "checkpoint"}


@pytest.mark.slow
def test_bundled_speech_config_contains_the_model_profile() -> None:
    from stretto.codecs.base import load_codec
    from stretto.convert.make_repository import profile  # imports transformers

    (parameter,) = read_config("speech")["parameters"]
    codec = load_codec(TINY.codec, ROOT / "language_model/1/checkpoint", "cpu", TINY.layout.num_codebooks)
    assert parameter["key"] == ["profile"]
    assert parameter["value"][0]["string_value"] == [
        profile(TINY, codec.spec.sample_rate, codec.spec.frame_rate, lookahead_frames=codec.spec.lookahead_frames)
    ]
    config = {"parameters": {"profile": {"string_value": parameter["value"][0]["string_value"][0]}}}
    assert ModelProfile.from_config(config).signals == PLUGIN.signals != USUAL_SIGNALS
