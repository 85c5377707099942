"""Estimate of what a release needs, and the choice of its device."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.releases.codec_cases import of_plugins
from stretto.codecs.decoder_sizes import UNKNOWN
from stretto.convert.profiles import engine_arguments
from stretto.engine.prompt_checks import Capacity
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import CheckpointError
from stretto.families.tiny.family import TINY
from stretto.family.base import Segment
from stretto.family.plugin import decoder_size
from stretto.machine.gpus import MIB, Gpu
from stretto.machine.kv_blocks import blocks_in_window
from stretto.machine.sizing import ENGINE_BYTES, SERVER_BYTES, Backbone, Needs, cpu_cache_bytes, latent_bytes
from stretto.releases import fit
from stretto.releases.catalogue import ReleaseEntry, RepositoryFiles, entries, find
from stretto.releases.fit import Device, Need, check, check_disk, choose, held_mb, need, speed_line
from stretto.releases.messages import BadArgument, DoesNotFit
from tests.codecs.silent import SILENT

GB = 1_000_000_000
SMALL_GPU = Gpu(0, "NVIDIA L4", 24 * GB, 22 * GB, (8, 9))
BUSY_GPU = Gpu(1, "NVIDIA L4", 24 * GB, 3 * GB, (8, 9))
LARGE_GPU = Gpu(2, "NVIDIA H100", 80 * GB, 79 * GB, (9, 0))
# Without a shape, a release with 4 GB of weights needs 14.2 GB on a GPU, and 5.6 GB on a CPU.
BARE = ReleaseEntry("bare", "tiny", RepositoryFiles("acme/bare", ("*",)), ())
SHAPE = {"hidden": 512, "layers": 10, "kv_heads": 4, "head_dim": 64, "heads": 4, "inner": 6_169, "vocabulary": 1_000}
SHAPE |= {"head_columns": 1_000, "frame_rate": 25.0, "is_guided": False, "tables": 1}
SHAPED = replace(BARE, name="shaped", shape=SHAPE)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the facts about a machine, which a test may change."""
    facts = SimpleNamespace(gpus=[], available=12 * GB, total=16 * GB, has_cuda=True)
    monkeypatch.setattr(fit, "holders", lambda gpu: "" if gpu == 0 else f"holder on {gpu}")
    monkeypatch.setattr(fit, "gpus", lambda: facts.gpus)
    monkeypatch.setattr(fit, "available_memory", lambda: facts.available)
    monkeypatch.setattr(fit, "total_memory", lambda: facts.total)
    monkeypatch.setattr(fit, "has_cuda_vllm", lambda: facts.has_cuda)
    return facts


def test_need_without_a_shape_is_that_of_the_files() -> None:
    assert need(BARE, 4 * GB, is_on_gpu=True) == Need(4 * GB, 0, 6_950_000_000, SERVER_BYTES + ENGINE_BYTES)
    on_cpu = need(BARE, 4 * GB, is_on_gpu=False)
    assert on_cpu == Need(4 * GB, 0, 0, 1_600_000_000)
    assert on_cpu.total == 5_600_000_000


def test_unknown_family_has_an_unknown_codec() -> None:
    gone = replace(BARE, family="gone")
    assert need(gone, 4 * GB, is_on_gpu=True).codec == UNKNOWN.gpu_bytes


def test_need_counts_weights_in_two_bytes_on_a_gpu_and_as_stored_on_a_cpu() -> None:
    backbone = fit.backbone(SHAPED)
    assert backbone is not None
    in_half, in_full = 2 * backbone.weights, 4 * backbone.weights
    on_gpu = need(SHAPED, in_full, is_on_gpu=True)
    assert on_gpu.weights == in_half
    assert on_gpu.cache == 2 * TINY.max_model_len * backbone.kv_bytes  # the longest guided reply of the family
    half, full = need(SHAPED, in_half, is_on_gpu=False), need(SHAPED, in_full, is_on_gpu=False)
    assert (half.weights, full.weights) == (in_half, in_full)
    assert half.cache == cpu_cache_bytes(TINY, TINY.max_model_len, 0, backbone.kv_bytes, 32)
    assert full.cache == 2 * half.cache


def test_need_includes_tables_of_speaker_vectors() -> None:
    shape = SHAPE | {"vector_rows": 100, "window": 600}  # which includes the vectors
    table = 2 * 10 * 100 * 512 * 2
    for is_on_gpu, slots in ((True, 256), (False, 32)):
        plain = need(replace(SHAPED, shape=SHAPE | {"window": 500}), 0, is_on_gpu)
        assert need(replace(SHAPED, shape=shape), 0, is_on_gpu).cache - plain.cache == slots * table


# KV cache on a CPU in MB in 16 and in 32 bits (latents: in 32 bits alone), by family and bytes of a row in 16 bits.
CPU_CACHES_MB = {
    ("bagpiper", 147_456): (9_673, 19_346),
    ("csm", 32_768): (409, 818),
    ("opuslm", 524_288): (4_329, 8_657),
    ("opuslm_dialogue", 196_608): (2_160, 3_246),
    ("qwen3_tts", 114_688): (3_765, 7_531),
    ("vita_audio", 77_824): (2_555, 5_111),
} | of_plugins("CPU_CACHES_MB", "releases")
SHAPED_ENTRIES = [each for each in entries() if each.shape]


@pytest.mark.parametrize(
    "entry",
    [each for entry in SHAPED_ENTRIES for each in (entry, fit.speaker_of(entry)) if each is not None],
    ids=lambda entry: f"{entry.name}-{entry.family}",
)
def test_kv_cache_on_a_cpu_has_room_for_the_longest_request_of_each_release(entry: ReleaseEntry) -> None:
    """A reply of full length, or both of a pair, fits into the cache of `make-repository`; sessions fit beside it."""
    shape, family = fit.backbone(entry), fit._family(entry)
    assert shape is not None
    record: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden,
        "max_position_embeddings": family.max_model_len,
    }
    if shape.kv_window:
        record |= {"layer_types": ["sliding_attention"] * shape.layers, "sliding_window": shape.kv_window}
    found = []
    expected = CPU_CACHES_MB[entry.family, shape.kv_bytes]
    for dtype, num_bytes in [("bfloat16", 2), ("float32", 4)][-len(expected) :]:
        arguments = engine_arguments(record | {"dtype": dtype}, family, is_on_gpu=False)
        cache, block = arguments["kv_cache_memory_bytes"], 32 * shape.kv_bytes * num_bytes // 2
        capacity = Capacity(cache // block, 32, arguments["max_num_seqs"], shape.kv_window or None, 2048)
        rules = SegmentRules(family, arguments["max_model_len"])
        assert (family.code_track is None) or 1 <= capacity.max_sessions(rules) == capacity.max_num_seqs - 1
        held = blocks_in_window(family.max_model_len, 32, capacity.window, capacity.num_in_flight)
        assert held * (2 if family.guided_streams else 1) <= capacity.num_blocks - 1
        estimated = fit._batch_cache_bytes(entry, num_bytes, is_on_gpu=False)
        tables = arguments["max_num_seqs"] * shape.table_bytes * num_bytes // 2
        tables += latent_bytes(family, arguments["max_num_seqs"], family.max_model_len)
        assert 0 <= cache - (estimated - tables) < MIB
        found.append(round(cache / 1e6))
    assert tuple(found) == expected


@pytest.mark.parametrize("entry", SHAPED_ENTRIES, ids=lambda entry: entry.name)
def test_need_of_each_release_is_that_of_an_installed_model(entry: ReleaseEntry) -> None:
    """The rule is that of `make-repository`: see tests/convert/test_make_repository.py for its parts."""
    backbone, speaker = fit.backbone(entry), fit.speaker_of(entry)
    assert isinstance(backbone, Backbone)
    spoken = None if speaker is None else fit.backbone(speaker)
    weights = backbone.weights + (0 if spoken is None else spoken.weights)
    for is_on_gpu in (True, False):
        found = need(entry, 2 * weights, is_on_gpu)
        assert found.weights == 4 // len(CPU_CACHES_MB[entry.family, backbone.kv_bytes]) * weights
        assert found.cache > 0
        if is_on_gpu and spoken is None:
            needs = Needs(found.codec, None, found.weights, 0, found.cache)
            assert found.total == needs.reserved + needs.engine
            with pytest.raises(CheckpointError, match="expected a GPU with at least"):
                needs.check(found.total - 1)


def test_free_gpu_that_fits_is_chosen(host: SimpleNamespace) -> None:
    host.gpus = [BUSY_GPU, SMALL_GPU, LARGE_GPU]
    found = choose(BARE, 4 * GB, None, cpu=False)
    assert found == Device(2, "NVIDIA H100, 79.0 of 80.0 GB free: needs about 14.2 GB for one stream (estimate)")
    check(BARE, 4 * GB, found)
    host.gpus = [BUSY_GPU, SMALL_GPU]
    found = choose(BARE, 4 * GB, None, cpu=False)
    assert found == Device(0, "NVIDIA L4, 22.0 of 24.0 GB free: needs about 14.2 GB for one stream (estimate)")
    check(BARE, 4 * GB, found)


def test_cpu_is_chosen_without_a_gpu(host: SimpleNamespace) -> None:
    host.has_cuda = False
    found = choose(BARE, 4 * GB, None, cpu=False)
    assert found == Device(None, "CPU: needs about 5.6 of 12.0 GB that are free (estimate)")
    check(BARE, 4 * GB, found)


@pytest.mark.parametrize("cpu", [False, True])
def test_vllm_for_gpus_without_a_gpu_is_reported(cpu: bool, host: SimpleNamespace) -> None:
    assert choose(BARE, 4 * GB, None, cpu) == Device(
        None,
        "CPU: needs about 5.6 of 12.0 GB that are free (estimate);"
        " the installed vLLM is for GPUs and does not run on a CPU (docs/install.md)",
    )


def test_gpu_is_not_used_by_a_vllm_for_cpus(host: SimpleNamespace) -> None:
    host.gpus, host.has_cuda = [SMALL_GPU], False
    remedy = "the installed vLLM is for CPUs (docs/install.md describes the image for GPUs)"
    assert choose(BARE, 4 * GB, None, cpu=False) == Device(
        None,
        f"CPU: needs about 5.6 of 12.0 GB that are free (estimate); NVIDIA L4 is not used, because {remedy}",
    )
    assert choose(BARE, 4 * GB, 0, cpu=False) == Device(
        0, f"NVIDIA L4, 22.0 of 24.0 GB free: needs about 14.2 GB for one stream (estimate); {remedy}"
    )


def test_given_device_is_used(host: SimpleNamespace) -> None:
    host.gpus = [BUSY_GPU, LARGE_GPU]
    assert choose(BARE, 4 * GB, 1, cpu=False).gpu == 1
    host.has_cuda = False
    assert choose(BARE, 4 * GB, None, cpu=True) == Device(
        None, "CPU: needs about 5.6 of 12.0 GB that are free (estimate)"
    )
    with pytest.raises(BadArgument, match=r"^--gpu: expected the number of a GPU \(1, 2\), got 3$"):
        choose(BARE, 4 * GB, 3, cpu=False)
    host.gpus = []
    with pytest.raises(BadArgument, match=r"^--gpu: expected the number of a GPU \(nvidia-smi shows none\), got 0$"):
        choose(BARE, 4 * GB, 0, cpu=False)


def message(entry: ReleaseEntry, num_bytes: int, device: Device) -> str:
    with pytest.raises(DoesNotFit) as caught:
        check(entry, num_bytes, device)
    return str(caught.value)


def test_release_larger_than_the_gpu_is_refused_with_numbers(host: SimpleNamespace) -> None:
    host.gpus = [BUSY_GPU, SMALL_GPU]
    found = choose(BARE, 18 * GB, None, cpu=False)
    assert found.gpu == 0, "vLLM for GPUs does not run on a CPU"
    expected = "bare needs about 28.2 GB of GPU memory (estimate), NVIDIA L4 has 24.0 GB of which 22.0 are free"
    assert message(BARE, 18 * GB, found) == expected
    host.has_cuda = False
    assert message(BARE, 18 * GB, Device(0, "")) == f"{expected}; --cpu needs about 19.6 GB, 12.0 are free"
    expected = "bare needs about 14.2 GB of GPU memory (estimate), NVIDIA L4 has 24.0 GB of which 3.0 are free"
    assert message(BARE, 4 * GB, Device(1, "")).startswith(f"{expected}; it is held by holder on 1; --cpu")
    assert "held" not in message(BARE, 40 * GB, Device(1, "")), "larger than the GPU"


@pytest.mark.parametrize(("available", "total", "held"), [(12, 16, ""), (4, 64, "; it is held by holder on None")])
def test_release_larger_than_the_memory_is_refused_with_numbers(
    available: int, total: int, held: str, host: SimpleNamespace
) -> None:
    host.available, host.total = available * GB, total * GB
    assert message(BARE, 18 * GB, Device(None, "")) == (
        f"bare needs about 19.6 GB of memory (estimate), this machine has {total}.0 GB of which {available}.0 are free"
        + held
    )


def test_share_of_a_busy_gpu_is_lowered_in_a_printed_line(
    host: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    host.gpus = [replace(SMALL_GPU, free_bytes=24 * GB - fit.IDLE_BYTES), BUSY_GPU]
    assert (held_mb(0), held_mb(2)) == (0, 0)
    assert capsys.readouterr().err == ""
    assert held_mb(1) == 20028
    expected = "memory       NVIDIA L4: 3.0 of 24.0 GB are free; gpu_memory_utilization is lowered accordingly\n"
    assert capsys.readouterr().err == expected


def test_smaller_release_is_suggested(host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    host.gpus = [SMALL_GPU]
    little = replace(BARE, name="little", source=replace(BARE.source, sizes={"a": 2 * GB, "b": GB}))
    known = {"little": little, "unsized": replace(BARE, name="unsized"), "shaped": SHAPED}
    monkeypatch.setattr(fit, "find", known.get)

    def end(smaller: str, device: Device) -> str:
        return message(replace(BARE, smaller=smaller), 40 * GB, device).partition("; ")[2]

    assert end("little", Device(0, "")) == "little needs about 13.2 GB (--or-smaller)"
    assert end("little", Device(None, "")) == "little needs about 4.6 GB (--or-smaller)"
    assert end("unsized", Device(0, "")) == "unsized is smaller (--or-smaller)"
    assert end("shaped", Device(0, "")) == "shaped needs about 10.4 GB (--or-smaller)"
    assert end("unknown", Device(0, "")) == ""


def test_disk_is_checked_once_for_each_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    free = {home: 9 * GB}
    monkeypatch.setattr(fit, "free_disk", lambda folder: free[fit.existing(folder)])
    one, other = home / ".cache/huggingface", home / ".cache/stretto/models"
    check_disk({one: 5 * GB, other: 3 * GB})
    free[home] = 3_100_000_000
    with pytest.raises(DoesNotFit) as caught:
        check_disk({one: 5 * GB, other: 3 * GB})
    assert str(caught.value) == (
        "needs 9.0 GB in ~/.cache/huggingface and ~/.cache/stretto/models, 3.1 GB are free;"
        " STRETTO_MODELS and HF_HOME choose other places"
    )
    free[home] = 0
    check_disk({one: 0, other: 0})  # nothing is to be written


def test_folders_of_two_file_systems_are_checked_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Path("/one/models"), Path("/two/hub")
    disks = {one: SimpleNamespace(st_dev=1), other: SimpleNamespace(st_dev=2)}
    monkeypatch.setattr(fit, "existing", lambda folder: SimpleNamespace(stat=lambda: disks[folder]))
    monkeypatch.setattr(fit, "free_disk", {one: 4 * GB, other: 3 * GB}.__getitem__)
    check_disk({one: 3 * GB, other: 2 * GB})
    with pytest.raises(DoesNotFit, match=r"^needs 3\.1 GB in /two/hub, 3\.0 GB are free; "):
        check_disk({one: 3 * GB, other: 2_100_000_000})


def test_speed_is_told_if_it_is_below_real_time() -> None:
    backbone = fit.backbone(SHAPED)
    assert backbone is not None
    size = 2 * backbone.weights  # in 16 bits
    needed = 25 * backbone.frame_bytes
    rate = 1e9 * decoder_size("tiny").gflop_per_s
    assert speed_line(SHAPED, size, needed, rate) is None
    assert speed_line(SHAPED, size, needed / 1.25, 4 * rate) == (
        "about 1.2 times slower than real time (estimate for a second of audio: language model 1.2 s, codec 0.2 s)"
    )
    assert speed_line(SHAPED, size, needed, rate / 3) == (
        "about 3 times slower than real time (estimate for a second of audio: language model 1.0 s, codec 3.0 s)"
    )
    assert speed_line(BARE, size, 1.0, 1.0) is None
    in_full = str(speed_line(SHAPED, 2 * size, needed, rate))
    assert in_full.startswith("about 2 times slower than real time ("), "32 bits are read for each weight"


def test_speed_counts_the_codec_of_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its codec may differ from the family's, and may decode a reply after its end; a transcript has no sound."""
    rate = 1e9 * decoder_size("xcodec").gflop_per_s
    entry = replace(SHAPED, shape=SHAPE | {"codec": "xcodec"})
    backbone = fit.backbone(entry)
    assert backbone is not None
    needed = 25 * backbone.frame_bytes
    assert str(speed_line(entry, 0, needed, rate / 2)).endswith("language model 1.0 s, codec 2.0 s)")
    monkeypatch.setattr(fit, "decoder_size", lambda codec: replace(decoder_size(codec), is_whole=True))
    assert str(speed_line(entry, 0, needed, rate / 2)).startswith("about 3 times"), "1 s and then 2 s"
    silent = replace(TINY, tasks=tuple(replace(task, segments=(Segment.TEXT,)) for task in TINY.tasks))
    monkeypatch.setattr(fit, "_family", lambda entry: silent)
    assert str(speed_line(entry, 0, needed / 2, rate)).endswith("language model 2.0 s)")


def test_every_codec_has_a_size() -> None:
    codecs = {fit._family(entry).codec for entry in entries()} - SILENT
    assert all(decoder_size(codec).gflop_per_s for codec in codecs)


def test_frame_reads_depth_layers_for_each_code_and_the_cache_of_both_rows() -> None:
    entry = find("qwen3-tts")
    assert entry is not None
    backbone = fit.backbone(entry)
    assert backbone is not None
    assert backbone.depth is not None
    assert backbone.frame_bytes > 2 * (backbone.layer_weights + 15 * backbone.depth.layer_weights)
    guided = replace(backbone, is_guided=True)
    cache = round(backbone.attended * backbone.kv_bytes)
    assert guided.frame_bytes - backbone.frame_bytes == pytest.approx(cache, abs=1)
