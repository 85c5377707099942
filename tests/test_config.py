import json
import re
from pathlib import Path

import pytest

from stretto.config import DecoderConfig, EngineConfig


def test_decoder_parameters_are_parsed_and_others_ignored() -> None:
    config = DecoderConfig.from_parameters(
        {"codec": "tiny", "device": "cuda:1", "max_batch": "4", "idle_timeout_s": "2.5", "checkpoint": "somewhere"}
    )
    assert config == DecoderConfig(codec="tiny", device="cuda:1", max_batch=4, idle_timeout_s=2.5)


def test_right_context_and_runtime_are_parameters() -> None:
    assert DecoderConfig.from_parameters({"right_frames": "3", "runtime": "onnx"}) == DecoderConfig(
        right_frames=3, runtime="onnx"
    )
    assert DecoderConfig.from_parameters({}).right_frames is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_batch": "many"}, "max_batch must be int, got 'many'"),
        ({"max_batch": "0"}, "max_batch must be >= 1, got 0"),
        ({"right_frames": "none"}, "right_frames must be int, got 'none'"),
        ({"runtime": "onnx", "convolutions": "exact"}, "convolutions must be float32 if runtime is onnx, got exact"),
        ({"right_frames": "-1"}, "right_frames must be >= 0, got -1"),
        ({"runtime": "tensorrt"}, r"runtime must be one of \('torch', 'onnx'\), got 'tensorrt'"),
        ({"threads": "-1"}, "threads must be >= 1, got -1"),
        ({"max_utterances": "0"}, "max_utterances must be >= 1"),
        ({"idle_timeout_s": "nan"}, "idle_timeout_s must be > 0, got nan"),
        ({"reference_mb": "-1"}, "reference_mb must be >= 0, got -1"),
        ({"idle_timeout_s": "0"}, "idle_timeout_s must be > 0"),
        ({"stop_timeout_s": "-1"}, "stop_timeout_s must be >= 0"),
        ({"warm_up_s": "-1"}, "warm_up_s must be >= 0"),
        ({"num_codebooks": "0"}, "num_codebooks must be >= 1, got 0"),
        ({"align_s": "0"}, r"align_s must be in \(0, [0-9.]+\], got 0"),
        ({"graphs": "yes"}, "graphs must be true or false, got 'yes'"),
    ],
)
def test_out_of_range_decoder_parameter_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig.from_parameters(parameters)


def test_engine_arguments_are_read_verbatim_from_the_file(tmp_path: Path) -> None:
    arguments = {"max_num_seqs": 4, "dtype": "float32"}
    (tmp_path / "engine.json").write_text(json.dumps(arguments))
    assert EngineConfig.from_file(tmp_path / "engine.json", tmp_path) == EngineConfig(tmp_path, arguments)


def test_kv_cache_shares_are_read_from_the_config_file(tmp_path: Path) -> None:
    share = {"understanding": 0.4, "generation": 1}
    record = {"max_num_seqs": 4, "kv_share": share, "batch_invariant": True}
    (tmp_path / "engine.json").write_text(json.dumps(record))
    config = EngineConfig.from_file(tmp_path / "engine.json", tmp_path)
    assert (config.engine_args, config.kv_share, config.batch_invariant) == ({"max_num_seqs": 4}, share, True)


def test_max_waiting_is_read_from_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"max_num_seqs": 4, "max_waiting": 0}')
    config = EngineConfig.from_file(tmp_path / "engine.json", tmp_path)
    assert (config.engine_args, config.max_waiting) == ({"max_num_seqs": 4}, 0)


def test_latent_steps_are_read_from_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"latent_steps": [5, 10]}')
    assert EngineConfig.from_file(tmp_path / "engine.json", tmp_path).latent_steps == [5, 10]


def test_first_frame_target_is_read_from_engine_json(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"max_num_seqs": 4, "first_frame_target_s": 1.5}')
    config = EngineConfig.from_file(tmp_path / "engine.json", tmp_path)
    assert (config.engine_args, config.first_frame_target_s) == ({"max_num_seqs": 4}, 1.5)


def test_engine_of_a_speaker_has_the_same_arguments_unless_its_own_are_given(tmp_path: Path) -> None:
    record = {"dtype": "float32", "max_num_seqs": 4, "max_waiting": 2, "reserved_mb": 9000}
    memory = {"gpu_memory_utilization": 0.6, "kv_cache_memory_bytes": 1 << 30, "num_gpu_blocks_override": 7}
    own = {"max_num_seqs": 8, "memory_mb": 700, "kv_share": {"generation": 0.5}}
    (tmp_path / "engine.json").write_text(json.dumps({**record, **memory, "speaker": own}))
    config = EngineConfig.from_file(tmp_path / "engine.json", tmp_path)
    assert config.engine_args == {"dtype": "float32", "max_num_seqs": 4, **memory}
    speaker = EngineConfig(
        tmp_path / "two", {"dtype": "float32", "max_num_seqs": 8}, {"generation": 0.5}, memory_mb=700
    )
    assert config.speaker_config(tmp_path / "two") == speaker
    for odd in ([8], {"speaker": {}}, {"checkpoint": "elsewhere"}):
        with pytest.raises(ValueError, match=r"speaker: expected an object .* without speaker and checkpoint, got"):
            EngineConfig(tmp_path, speaker=odd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scheduler_cls"):
        EngineConfig(tmp_path, speaker={"scheduler_cls": "mine"}).speaker_config(tmp_path)


def test_adapter_paths_are_absolute_or_relative_to_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"adapters": {"near": "adapters/near", "far": "/srv/far"}}')
    config = EngineConfig.from_file(tmp_path / "engine.json", tmp_path / "checkpoint")
    assert config.engine_args == {}
    assert config.adapter_folders == {"near": tmp_path / "checkpoint/adapters/near", "far": Path("/srv/far")}


@pytest.mark.parametrize("name", ["model", "scheduler_cls", "skip_tokenizer_init"])
def test_plugin_controlled_engine_arguments_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name):
        EngineConfig(tmp_path, {name: "mine"})


NO_INTEGERS = (-1, 1.5, "all", True)
NO_DURATIONS = (0, -1.5, "soon", True, float("inf"), float("nan"))
# For each option, what its error expects, and values that are refused.
REFUSED: dict[str, tuple[str, tuple[object, ...]]] = {
    "reserved_mb": (" must be an integer >= 0, or null for vLLM's default", NO_INTEGERS),
    "memory_mb": (" must be an integer >= 1, or null for vLLM's default", (*NO_INTEGERS, 0)),
    "first_frame_target_s": (" must be > 0, or null for none", NO_DURATIONS),
    "submit_early_ms": (" must be > 0, or null for none", NO_DURATIONS),
    "max_waiting": (" must be >= 0, or null for no bound", NO_INTEGERS),
    "batch_invariant": (" must be true, false or null", ("yes",)),
    "live_reserve": (" must be true or false", ("yes",)),
    "latent_steps": (": expected a list of integers", (5, [1.5], [True], "5")),
    "first_chunk": (" must be one of float32, exact", ("int8",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_engine_option_is_named(name: str, tmp_path: Path) -> None:
    expected, values = REFUSED[name]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}{re.escape(expected)}.*, got {re.escape(repr(value))}$"):
            EngineConfig(tmp_path, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("adapters", [["narrator"], {"narrator": ""}, {"": "narrator"}, {"narrator": 3}, None])
def test_invalid_adapters_option_is_refused(adapters: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapters: expected"):
        EngineConfig(tmp_path, adapters=adapters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ([0.5], "kv_share: expected an object that maps names to shares, got [0.5]"),
        ({"singing": 0.5}, "kv_share: expected understanding or generation, got 'singing'"),
        *(({"generation": value}, f"kv_share.generation must be in (0, 1], got {value!r}") for value in (0, 1.5, True)),
    ],
)
def test_out_of_range_kv_share_is_refused(share: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineConfig(tmp_path, kv_share=share)
