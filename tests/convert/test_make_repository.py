"""A model repository for another checkpoint has the bundled files, a link, and suitable arguments."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stretto.codecs.base import Codec, CodecSpec, Stateful, Windowed
from stretto.config import DecoderConfig, EngineConfig
from stretto.convert.make_repository import (
    BUNDLED,
    CHECKPOINT,
    ENGINE,
    WARM_UP_S,
    main,
    profile,
)
from stretto.convert.profiles import PROFILES, bytes_per_row, check_first_chunk, engine_arguments
from stretto.decoder.memory import DecoderMemory, measure
from stretto.encoders.xeus import FOLDER
from stretto.errors import CheckpointError
from stretto.families.opuslm.convert import ConvertedSslTokenizer
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.family.input_tracks import CodeTrack
from stretto.family.mechanism import FrameFilter, Mechanism, RequestConditions
from stretto.family.plugin import family_at, plugins
from stretto.launcher.front_ends import cloning_models
from stretto.launcher.options import OPTIONS_FILE, read_options
from stretto.machine.sizing import DECODER_LIBRARY_BYTES, SERVER_BYTES, Needs
from stretto.preprocessing.request import Preprocessor
from tests.aligning.ctc_release import write_release as write_ctc_release
from tests.published_checkpoints import convert, write_release
from tests.published_xeus import write_xeus


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    return convert("opuslm", write_release("opuslm", folder), folder / "converted")


@pytest.fixture(scope="module", autouse=True)
def codecs_are_measured_once() -> Iterator[None]:
    """Keep the memory that a codec needs, because computing it takes a second."""
    known = dict[tuple[CodecSpec, DecoderConfig], DecoderMemory]()

    def measure_once(codec: Codec, config: DecoderConfig) -> DecoderMemory:
        key = codec.spec, config
        known[key] = known.get(key) or measure(codec, config)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.convert.make_repository.measure", measure_once)
        yield


def made(checkpoint: Path, out: Path, *words: str) -> dict:
    assert main(["--checkpoint", str(checkpoint), "--out", str(out), *words]) == 0
    return json.loads((out / "language_model/1/engine.json").read_text())


def test_made_repository_is_the_bundled_one_with_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    made(checkpoint, tmp_path / "out")
    for model in ("preprocessor", "language_model", "acoustic_decoder", "speech"):
        assert (tmp_path / "out" / model / "1").is_dir()
        for name in ("config.pbtxt", "1/model.py"):
            if (BUNDLED / model / name).exists():
                expected = (BUNDLED / model / name).read_text()
                expected = expected.replace(
                    '"warm_up_s" value { string_value: "0.0"', f'"warm_up_s" value {{ string_value: "{WARM_UP_S}"'
                )
                family = family_at(checkpoint)
                spec = Preprocessor(checkpoint).codec.spec
                own_profile = profile(family, 16_000, family.frame_rate, lookahead_frames=spec.lookahead_frames)
                expected = expected.replace(profile(TINY, 24_000, TINY.frame_rate), own_profile)
                assert (tmp_path / "out" / model / name).read_text() == expected
    names = ("cosyvoice2", "cosyvoice2_dit", "f5_tts", "opuslm")  # ensembles for other clients that clone voices
    assert cloning_models(tmp_path / "out") == names
    assert all((tmp_path / "out" / name / "1").is_dir() for name in names)
    assert cloning_models(BUNDLED) == ()
    link = tmp_path / "out/language_model/1/checkpoint"
    assert link.is_symlink()
    assert link.resolve() == checkpoint.resolve()


def test_engine_arguments_fit_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    arguments = made(checkpoint, tmp_path / "out")
    assert (arguments["dtype"], arguments["max_model_len"]) == ("float32", 1024)
    rows = arguments["kv_cache_memory_bytes"] // bytes_per_row(
        json.loads((checkpoint / "config.json").read_text()), "float32"
    )
    assert rows // arguments["block_size"] > 2 * -(-1024 // arguments["block_size"])
    changes = {"max_num_seqs": 4, "tensor_parallel_size": 2, "kv_cache_memory_bytes": 1 << 30}
    given = tmp_path / "engine.json"
    given.write_text(json.dumps(changes))
    changed = made(checkpoint, tmp_path / "other", "--engine-args", str(given))
    assert changed == arguments | changes | {"max_waiting": 1}


WINDOWED = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 500}
UNGUIDED = replace(TINY, guided_streams=())
LIVE = replace(UNGUIDED, track=CodeTrack(range(1, 9)))


@pytest.mark.parametrize(
    ("family", "longest", "changes", "num_rows"),
    [
        (TINY, 32_768, {}, 2 * 32_768),  # a CFG pair
        (UNGUIDED, 32_768, {}, 32_768),
        (LIVE, 32_768, {}, 32 * 32_768),  # another reply beside 31 sessions
        (LIVE, 1 << 19, {}, 3 * (1 << 19)),  # two sessions take CPU_CACHE_BYTES, of 2 kB in each row
        (LIVE, 1 << 21, {}, 2 * (1 << 21)),  # one session takes more
        (LIVE, 45_056, WINDOWED, 31 * 19 * 32 + 81 * 32),  # blocks of sessions, and of a prompt that ends outside them
        (UNGUIDED, 45_056, WINDOWED, 32 * 600),
        (replace(UNGUIDED, frame_rate=12.5), 4_096, {}, 32 * 388),
        (replace(UNGUIDED, frame_rate=100.0), 4_096, {}, 32 * 1_024),
        (replace(UNGUIDED, frame_rate=0.0), 4_096, {}, 32 * 1_024),
        (
            replace(UNGUIDED, frame_rate=0.0),
            4_096,
            {"hidden_size": 12_800},
            10_485,
        ),  # 204,800 bytes a row, 2 GiB in all
    ],
)
def test_kv_cache_on_a_cpu_has_room_for_the_longest_reply_and_the_average_of_all_slots(
    family: Family, longest: int, changes: dict[str, Any], num_rows: int
) -> None:
    record = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128, "dtype": "float32"}
    record |= {"max_position_embeddings": longest, **changes}
    arguments = engine_arguments(record, replace(family, max_model_len=longest), is_on_gpu=False)
    row = bytes_per_row(record, "float32")
    expected = (num_rows + 2 * arguments["block_size"]) * row
    assert expected <= arguments["kv_cache_memory_bytes"] < expected + (1 << 20)
    assert arguments["max_model_len"] == longest


def test_kv_cache_on_a_cpu_follows_from_given_arguments() -> None:
    record = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128, "dtype": "bfloat16"}
    record |= {"max_position_embeddings": 32_768}
    family, row = replace(UNGUIDED, max_model_len=32_768), bytes_per_row(record, "float32")

    def num_bytes(**given: Any) -> int:
        return engine_arguments(record, family, is_on_gpu=False, overrides=given)["kv_cache_memory_bytes"]

    def whole_mib(rows: int, row_bytes: int) -> int:
        return -(-(rows + 64) * row_bytes >> 20) << 20

    assert num_bytes() == whole_mib(32_768, row // 2)
    assert num_bytes(dtype="float32") == whole_mib(32_768, row)
    assert num_bytes(dtype="float32", max_model_len=4_096) == whole_mib(32 * 600, row)
    assert num_bytes(dtype="float32", max_model_len=4_096, max_num_seqs=2) == whole_mib(4_096, row)
    assert num_bytes(kv_cache_memory_bytes=5) == 5


def test_sessions_on_a_cpu_are_limited_by_a_given_cache() -> None:
    """Sessions keep 512 MiB each: four fit into the default cache. A given one may have more room."""
    record = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128, "dtype": "bfloat16"}
    record |= {"max_position_embeddings": 1 << 19}
    family = replace(LIVE, max_model_len=1 << 19)

    def slots(**given: Any) -> tuple[int, int]:
        arguments = engine_arguments(record, family, is_on_gpu=False, overrides=given)
        return arguments["max_num_seqs"], arguments["max_waiting"]

    assert slots() == (1 + 4, 1)  # 1 kB in each row
    assert slots(kv_cache_memory_bytes=64 << 30) == (32, 8)
    assert slots(kv_cache_memory_bytes=64 << 30, max_num_seqs=9) == (9, 2)
    assert slots(dtype="float32", max_num_seqs=2) == (2, 1), "a request may wait, whatever the number of slots"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: expected an integer in [1, 16777216], got 0"),
        ({"max_model_len": "auto"}, "max_model_len: expected an integer in [1, 16777216], got 'auto'"),
        ({"dtype": "auto"}, "dtype: expected float32, bfloat16, float16, got 'auto'"),
    ],
)
def test_given_argument_that_no_cache_can_be_computed_for_is_refused(
    given: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main([*words, "--engine-args", str(tmp_path / "given.json")]) == 1
    assert capsys.readouterr().err == f"stretto make-repository: --engine-args: {message}\n"


@pytest.mark.parametrize("family", [each.build(None) for each in plugins()], ids=lambda family: family.name)
def test_a_request_of_the_greatest_length_always_fits(family: Family) -> None:
    """Admission counts whole blocks, twice for a CFG pair, and vLLM keeps one block."""
    record = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 1 << 19, "dtype": "bfloat16"}
    record["max_position_embeddings"] = family.max_model_len
    arguments = engine_arguments(record, family, is_on_gpu=False)
    block_bytes = arguments["block_size"] * bytes_per_row(record, "bfloat16")  # a row has 2 MiB
    needed = -(-arguments["max_model_len"] // arguments["block_size"]) * (2 if family.guided_streams else 1)
    assert needed <= arguments["kv_cache_memory_bytes"] // block_bytes - 1


@pytest.mark.parametrize("family", [each.build(None) for each in plugins()], ids=lambda family: family.name)
def test_profile_gives_texts_and_speech_a_length_only_if_a_task_has_them(family: Family) -> None:
    for record, task in zip(json.loads(profile(family, 24_000, 25.0))["tasks"], family.tasks, strict=True):
        assert record["name"] == task.name
        assert (record["max_text_rows"] > 0, record["max_speech_s"] > 0) == (task.writes, task.has_audio_segment)


LATENT = [each for each in (plugin.build(None) for plugin in plugins()) if each.layout.latents is not None]


@pytest.mark.parametrize("family", LATENT, ids=lambda family: family.name)
def test_latents_of_a_small_model_fit_beside_the_kv_cache(family: Family) -> None:
    """As in `check_latent_table`; the smallest published language model has 1 kB per row in each of its layers."""
    record = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "dtype": "float32"}
    arguments = engine_arguments(record | {"max_position_embeddings": 2048}, family, is_on_gpu=False)
    assert family.layout.latents is not None
    table = (arguments["max_model_len"] + 1) * arguments["max_num_seqs"] * family.layout.latents.num_words * 4
    assert 8 * table <= arguments["kv_cache_memory_bytes"]


def test_kv_bytes_per_row_are_computed() -> None:
    record = {"num_hidden_layers": 36, "num_attention_heads": 32, "hidden_size": 4096}
    assert bytes_per_row(record, "bfloat16") == 36 * 2 * 4096 * 2
    assert bytes_per_row(record | {"num_key_value_heads": 8, "head_dim": 128}, "bfloat16") == 36 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("dtype", "vector_rows", "is_on_gpu", "num_slots"),
    [
        ("bfloat16", 625, True, 64),  # 82 MB each
        ("float32", 625, True, 32),
        ("float32", 625, False, 32),
        ("bfloat16", 20, True, 256),
        ("float32", 1 << 20, False, 1),
    ],
)
def test_tables_of_speaker_vectors_limit_the_batch_slots(
    dtype: str, vector_rows: int, is_on_gpu: bool, num_slots: int
) -> None:
    record = {"num_hidden_layers": 16, "num_attention_heads": 16, "hidden_size": 2048, "max_position_embeddings": 512}
    conditions = cast(RequestConditions, SimpleNamespace(vector_rows=vector_rows))
    family = replace(TINY, mechanism=Mechanism(conditions=conditions))
    arguments = engine_arguments(record | {"dtype": dtype}, family, is_on_gpu)
    assert (arguments["max_num_seqs"], arguments["max_waiting"]) == (num_slots, max(1, num_slots // 4))
    assert engine_arguments(record | {"dtype": dtype}, TINY, is_on_gpu)["max_num_seqs"] == (256 if is_on_gpu else 32)


def test_bundled_checkpoint_can_be_served_on_other_devices(tmp_path: Path) -> None:
    bundled = BUNDLED / "language_model/1/checkpoint"
    assert made(bundled, tmp_path / "cpu")["dtype"] == "float32"
    assert made(bundled, tmp_path / "gpu", "--gpu", "0")["dtype"] == "float16"
    text = (tmp_path / "cpu/acoustic_decoder/config.pbtxt").read_text()
    assert text == (BUNDLED / "acoustic_decoder/config.pbtxt").read_text()


def test_gpu_repository_places_codec_and_vllm_on_the_gpu(checkpoint: Path, tmp_path: Path) -> None:
    arguments = made(checkpoint, tmp_path / "out", "--gpu", "1")
    assert arguments.keys() == {
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_waiting",
        "max_num_batched_tokens",
        "attention_config",
        "reserved_mb",
    }
    assert arguments["max_num_seqs"] == 256
    assert arguments["reserved_mb"] == SERVER_BYTES >> 20, "GPU 1 has the codec, and GPU 0 the language model"
    text = (tmp_path / "out/acoustic_decoder/config.pbtxt").read_text()
    assert "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 1 ] } ]" in text
    assert not (tmp_path / "out" / OPTIONS_FILE).exists()
    assert 'key: "max_batch" value { string_value: "64" }' in text
    heard_on_the_cpu = (tmp_path / "out/preprocessor/config.pbtxt").read_text()
    assert heard_on_the_cpu == (BUNDLED / "preprocessor/config.pbtxt").read_text()
    assert arguments["attention_config"] == {"flash_attn_max_num_splits_for_cuda_graph": 1}


def test_language_model_gets_the_memory_that_others_leave(checkpoint: Path, tmp_path: Path) -> None:
    arguments = made(checkpoint, tmp_path / "out", "--gpu", "0")
    assert arguments["reserved_mb"] > (SERVER_BYTES + DECODER_LIBRARY_BYTES) >> 20
    assert (
        'key: "max_utterances" value { string_value: "320" }'
        in (tmp_path / "out/acoustic_decoder/config.pbtxt").read_text()
    )
    given = tmp_path / "given.json"
    given.write_text('{"gpu_memory_utilization": 0.5}')
    assert "reserved_mb" not in made(checkpoint, tmp_path / "other", "--gpu", "0", "--engine-args", str(given))


def test_engine_with_a_copy_of_the_codec_needs_its_memory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy must compute as the decoder does."""
    needed = list[int]()
    monkeypatch.setattr(Needs, "check", lambda needs, available: needed.append(needs.weights))
    given = tmp_path / "given.json"
    with monkeypatch.context() as patch:
        patch.setattr("stretto.convert.profiles.check_first_chunk", lambda *_: None)  # this codec has context
        for first_chunk in (None, "float32"):
            given.write_text(json.dumps({"first_chunk": first_chunk}))
            words = "--gpu", "0", "--gpu-memory", "80", "--engine-args", str(given)
            assert made(checkpoint, tmp_path / f"{first_chunk}", *words)["first_chunk"] == first_chunk
    given.write_text(json.dumps({"first_chunk": "exact"}))
    weights = sum(path.stat().st_size for path in (checkpoint / "codec").glob("*.safetensors"))
    assert needed[1] > needed[0] + weights
    for device in ((), ("--gpu", "0")):
        words = "--checkpoint", str(checkpoint), "--out", str(tmp_path / "odd"), "--engine-args", str(given)
        assert main([*words, *device]) == 1
        assert "first_chunk: expected float32, the decoder's convolutions, got exact" in capsys.readouterr().err


@pytest.mark.parametrize(("is_plain", "decodes_first"), [(False, True), (True, False)])
def test_first_frames_need_a_family_and_a_codec_that_permit_them(is_plain: bool, decodes_first: bool) -> None:
    spec = CodecSpec("any", 16_000, 640, 7, 256, Stateful() if decodes_first else Windowed(1, 1))
    family = TINY if is_plain else replace(TINY, mechanism=Mechanism(frames=FrameFilter()))
    check_first_chunk("float32", "float32", TINY, replace(spec, streaming=Stateful()))
    reason = "the codec any needs more" if is_plain else "tiny does not generate one frame of codes with each row"
    with pytest.raises(CheckpointError, match=f"first_chunk: expected null, because {reason}.*, got float32"):
        check_first_chunk("float32", "float32", family, spec)


def test_too_small_gpu_is_refused_with_numbers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--gpu", "0", "--gpu-memory"]
    assert main([*words, "4"]) == 1
    message = capsys.readouterr().err
    assert "expected a GPU with at least" in message
    assert "got 4.0 GiB" in message
    assert main([*words, "24"]) == 0


def test_audio_tokenizer_is_placed_on_the_codec_gpu(checkpoint: Path, tmp_path: Path) -> None:
    hearing = tmp_path / "hearing"
    shutil.copytree(checkpoint, hearing)
    (hearing / FOLDER).mkdir()
    ConvertedSslTokenizer.from_folder(write_xeus(tmp_path / "xeus"), 20).write(hearing / FOLDER, lambda num_bytes: None)
    made(hearing, tmp_path / "out", "--gpu", "1")
    for model in ("preprocessor", "acoustic_decoder"):
        text = (tmp_path / "out" / model / "config.pbtxt").read_text()
        assert "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 1 ] } ]" in text
    made(hearing, tmp_path / "two", "--gpu", "1", "--codec-device", "2")
    for model, gpu in {"preprocessor": 1, "acoustic_decoder": 2}.items():
        text = (tmp_path / "two" / model / "config.pbtxt").read_text()
        assert f"instance_group [ {{ count: 1 kind: KIND_GPU gpus: [ {gpu} ] }} ]" in text
    made(hearing, tmp_path / "other")
    assert "KIND_GPU gpus" not in (tmp_path / "other/preprocessor/config.pbtxt").read_text()


def test_convolutions_are_set(checkpoint: Path, tmp_path: Path) -> None:
    made(checkpoint, tmp_path / "float32", "--gpu", "0")
    made(checkpoint, tmp_path / "exact", "--gpu", "0", "--convolutions", "exact")
    for name in ("float32", "exact"):
        expected = f'key: "convolutions" value {{ string_value: "{name}" }}'
        assert expected in (tmp_path / name / "acoustic_decoder/config.pbtxt").read_text()


def test_decoder_may_use_the_memory_that_is_reserved_for_it(checkpoint: Path, tmp_path: Path) -> None:
    def limit_mb(name: str, *options: str) -> int:
        made(checkpoint, tmp_path / name, *options)
        text = (tmp_path / name / "acoustic_decoder/config.pbtxt").read_text()
        return int(re.search(r'"memory_mb" value \{ string_value: "(\d+)"', text)[1])  # type: ignore[index]

    arguments = made(checkpoint, tmp_path / "one", "--gpu", "0")
    beside = limit_mb("same", "--gpu", "0")
    assert 0 < beside < arguments["reserved_mb"] - ((SERVER_BYTES + DECODER_LIBRARY_BYTES) >> 20) + 2
    assert limit_mb("two", "--gpu", "0", "--codec-device", "1") == beside
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"gpu_memory_utilization": 0.5}))
    assert limit_mb("chosen", "--gpu", "0", "--engine-args", str(given)) == beside
    assert limit_mb("host") == 0


PROFILED = [
    ("latency", (), (8, 2, 512), {"first_frames": 1, "steady_frames": 25, "playout_s": 0.0}),
    ("balanced", (), (32, 8, 2048), None),
    ("throughput", (), (32, 32, 2048), {"first_frames": 32, "steady_frames": 50, "playout_s": 0.5}),
    ("latency", ("--gpu", "0", "--gpu-memory", "80"), (64, 16, 2048), {"first_frames": 1}),
]


@pytest.mark.parametrize(
    ("name", "words", "sizes", "chunking"), PROFILED, ids=["latency", "balanced", "throughput", "GPU"]
)
def test_profile_sets_batch_chunks_and_playout(
    checkpoint: Path, tmp_path: Path, name: str, words: tuple[str, ...], sizes: tuple[int, ...], chunking: Any
) -> None:
    arguments = made(checkpoint, tmp_path / "out", "--profile", name, *words)
    assert tuple(arguments[key] for key in ("max_num_seqs", "max_waiting", "max_num_batched_tokens")) == sizes
    texts = {
        model: parameters_of(tmp_path / f"out/{model}/config.pbtxt") for model in ("preprocessor", "acoustic_decoder")
    }
    found = json.loads(texts["preprocessor"]["chunking"] or "null")
    assert found == chunking or found.items() >= chunking.items()
    for key in ("first_frames", "steady_frames"):
        assert texts["acoustic_decoder"][key] == ("" if found is None else str(found[key]))
    assert Preprocessor(tmp_path / "out" / CHECKPOINT, chunking=found).family.name


def parameters_of(config: Path) -> dict[str, str]:
    """Return the parameters of a model config."""
    pairs = re.findall(r"""key: "(\w+)" value \{ string_value: (?:"([^"]*)"|'([^']*)')""", config.read_text())
    return {key: double or single for key, double, single in pairs}


EARLY = {"submit_early_ms": 3.0, "compilation_config": {"cudagraph_mode": "FULL"}, "first_chunk": "exact"}


def test_latency_on_a_gpu_uses_all_that_shortens_the_first_audio(checkpoint: Path, tmp_path: Path) -> None:
    """As far as family and codec permit it; other profiles and CPUs do not, and given arguments take precedence."""
    spec = CodecSpec("any", 16_000, 640, 7, 256, Stateful())
    without = {name: value for name, value in EARLY.items() if name != "first_chunk"}

    def chosen(config: dict[str, Any], family: Family, spec: CodecSpec, name: str = "latency") -> dict[str, Any]:
        return PROFILES[name].with_first_audio({}, config, family, spec, "exact")

    assert chosen({}, TINY, spec) == EARLY
    assert chosen({}, TINY, replace(spec, streaming=Windowed(1, 1))) == without
    heard = {"audio_config": {"num_mel_bins": 80, "n_window": 50}}
    assert chosen(heard, TINY, spec).keys() == {"submit_early_ms", "first_chunk"}
    assert chosen({}, replace(TINY, mechanism=Mechanism(frames=FrameFilter())), spec).keys() == {"submit_early_ms"}
    assert chosen({}, TINY, spec, "balanced") == {}
    words = "--profile", "latency"
    assert made(checkpoint, tmp_path / "gpu", "--gpu", "0", *words).items() >= without.items()
    assert not made(checkpoint, tmp_path / "cpu", *words).keys() & EARLY.keys()
    (tmp_path / "given.json").write_text('{"submit_early_ms": null}')
    given = "--engine-args", str(tmp_path / "given.json")
    assert made(checkpoint, tmp_path / "other", "--gpu", "0", *words, *given)["submit_early_ms"] is None


def shares_in(folder: Path) -> str:
    """Return the percentage of a GPU that the codec of a model repository may use."""
    text = (folder / "acoustic_decoder/config.pbtxt").read_text()
    return re.findall(r'"mps_share" value \{ string_value: "(\d+)"', text)[0]


def test_mps_is_enabled_only_on_request(checkpoint: Path, tmp_path: Path) -> None:
    made(checkpoint, tmp_path / "out", "--gpu", "0", "--mps", "--mps-share", "33")
    assert read_options(tmp_path / "out").shares_by_mps
    assert shares_in(tmp_path / "out") == "33"
    made(checkpoint, tmp_path / "other", "--gpu", "0")
    assert not read_options(tmp_path / "other").shares_by_mps
    assert shares_in(tmp_path / "other") == "100"


def of_dtype(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of a checkpoint with changed values in config.json."""
    shutil.copytree(checkpoint, folder)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | changes))
    return folder


def test_fp8_quantization_is_passed_to_vllm(checkpoint: Path, tmp_path: Path) -> None:
    in_half = of_dtype(checkpoint, tmp_path / "half", dtype="bfloat16")
    plain = made(in_half, tmp_path / "plain", "--gpu", "0")
    arguments = made(in_half, tmp_path / "out", "--gpu", "0", "--quantize", "fp8")
    assert arguments == plain | {"quantization": "fp8_per_channel"}


def test_int8_quantization_is_for_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    plain = made(checkpoint, tmp_path / "plain")
    assert made(checkpoint, tmp_path / "out", "--quantize", "int8") == plain | {"int8": True}
    assert EngineConfig.from_file(tmp_path / "out" / ENGINE, checkpoint).int8


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["fp8", "--gpu", "0"], {}, "--quantize fp8: expected a model in bfloat16 or float16, got float32"),
        (
            ["fp8", "--gpu", "0"],
            {"dtype": "bfloat16", "quantization_config": {"quant_method": "awq"}},
            "--quantize: expected a checkpoint without quantization_config, got 'awq'",
        ),
        (
            ["int8"],
            {"quantization_config": {"quant_method": "awq"}},
            "--quantize: expected a checkpoint without quantization_config, got 'awq'",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_quantized_is_refused(
    words: list[str],
    changes: dict[str, Any],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = of_dtype(checkpoint, tmp_path / "changed", **changes)
    assert main(["--checkpoint", str(folder), "--out", str(tmp_path / "out"), "--quantize", *words]) == 1
    assert capsys.readouterr().err == f"stretto make-repository: {message}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--quantize", "int3", "--gpu", "0"],
            "argument --quantize: invalid choice: 'int3' (choose from 'fp8', 'int8')",
        ),
        (["--quantize", "fp8"], "--quantize fp8: requires --gpu"),
        (["--quantize", "int8", "--gpu", "0"], "--quantize int8: expected no --gpu"),
        (["--codec-device", "0"], "--codec-device: requires --gpu"),
        (["--mps"], "--mps: requires --gpu"),
        (["--mps-share", "25", "--gpu", "0"], "--mps-share: requires --mps"),
        *(
            (["--mps-share", percent, "--mps", "--gpu", "0"], f"expected an integer from 1 to 100, got {percent!r}")
            for percent in ("0", "101", "33.3", "٣")
        ),
        (["--convolutions", "exact"], "--convolutions: requires --gpu"),
        *(
            (["--gpu", "0", f"--gpu-memory={size}"], f"expected a number of GiB above 0, got {size!r}")
            for size in ("inf", "nan", "0", "24GB")
        ),
        (["--gpu", "-1"], "expected the number of a GPU, from 0, got '-1'"),
    ],
)
def test_gpu_options_are_checked(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "a", "--out", "b", *words])
    assert message in capsys.readouterr().err


def test_quantized_checkpoint_is_served_unchanged(checkpoint: Path, tmp_path: Path) -> None:
    """vLLM finds the quantization method in config.json."""
    folder = of_dtype(checkpoint, tmp_path / "awq", dtype="float16", quantization_config={"quant_method": "awq"})
    arguments = made(folder, tmp_path / "out", "--gpu", "0")
    assert "quantization" not in arguments
    assert arguments["dtype"] == "float16"


def test_a_broken_audio_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hearing = tmp_path / "hearing"
    shutil.copytree(checkpoint, hearing)
    (hearing / FOLDER).mkdir()
    assert main(["--checkpoint", str(hearing), "--out", str(tmp_path / "out")]) == 1
    assert "ssl_tokenizer: expected config.json and model.safetensors of XEUS" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("codec", "config.yaml is missing"),
        ("tokenizer.json", "tokenizer.json: cannot be loaded as a tokenizer"),
        ("config.json", "config.json: expected a JSON object"),
        ("model-00001-of-00001.safetensors", "expected weights in *.safetensors, got none"),
    ],
)
def test_incomplete_checkpoint_is_refused_and_no_repository_written(
    missing: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for path in checkpoint.iterdir():
        if path.name != missing:
            (lacking / path.name).symlink_to(path)
    assert main(["--checkpoint", str(lacking), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("stretto make-repository: ")
    assert message in said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dtype", "int8", "dtype: expected float32, bfloat16, float16, got 'int8'"),
        ("max_position_embeddings", None, "max_position_embeddings: expected an integer in [1, 16777216], got None"),
        ("num_attention_heads", 0, "num_attention_heads: expected an integer in [1, 16777216], got 0"),
        ("head_dim", float("nan"), "head_dim: expected an integer in [1, 16777216], got nan"),
    ],
)
def test_invalid_config_size_is_refused_with_its_name(
    name: str, value: object, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for path in checkpoint.iterdir():
        (odd / path.name).symlink_to(path)
    (odd / "config.json").unlink()
    (odd / "config.json").write_text(json.dumps(json.loads((checkpoint / "config.json").read_text()) | {name: value}))
    assert main(["--checkpoint", str(odd), "--out", str(tmp_path / "out")]) == 1
    assert f"config.json: {message}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_reserved_arguments_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reserved = tmp_path / "reserved.json"
    reserved.write_text('{"scheduler_cls": "x"}')
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--engine-args", str(reserved)]
    assert main(words) == 1
    assert "scheduler_cls" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_make_repository_links_and_configures_the_aligner(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aligner = write_ctc_release(tmp_path / "aligner")
    made(checkpoint, tmp_path / "out", "--aligner", str(aligner))
    assert (tmp_path / "out/acoustic_decoder/1/aligner").resolve() == aligner.resolve()
    config = (tmp_path / "out/acoustic_decoder/config.pbtxt").read_text()
    assert 'key: "aligner" value { string_value: "1/aligner" }' in config
    config = (tmp_path / "out/preprocessor/config.pbtxt").read_text()
    assert 'key: "has_aligner" value { string_value: "true" }' in config
    ensemble = (tmp_path / "out/speech/config.pbtxt").read_text()
    assert json.loads(ensemble.partition("string_value: '")[2].partition("'")[0])["options"] == ["words"]
    (aligner / "vocab.json").write_text("{}")
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "no"), "--aligner", str(aligner)]) == 1
    assert "expected labels of single letters, got none" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
