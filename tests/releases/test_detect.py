"""Detection of releases: each random release is recognised by names and configs, and near misses are refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.releases import random_orpheus, random_qwen3_tts, random_vita
from plugins.chatterbox.lab import random_chatterbox
from plugins.cosyvoice3.lab import random_cosyvoice3
from plugins.fish_s2.lab import random_fish_s2
from plugins.higgs_audio.lab import random_higgs_audio, random_higgs_audio_v3
from plugins.kyutai.lab import random_kyutai_stt, random_kyutai_tts, random_moshi, random_personaplex
from plugins.moss.lab import random_moss, random_moss_local, random_moss_realtime
from plugins.pocket.lab import random_phonon, random_pocket
from plugins.qwen3_omni.lab import random_qwen3_omni
from plugins.vibevoice.lab import random_vibevoice_realtime
from plugins.vibevoice.tests import vibevoice_release
from plugins.voxcpm2.lab import random_voxcpm2
from stretto.convert.release import convertible
from stretto.family.plugin import FamilyPlugin, plugins
from stretto.family.recognition import Listing
from stretto.releases import target as detection
from stretto.releases.catalogue import find
from stretto.releases.messages import BadArgument, Unavailable
from stretto.releases.target import Folder, detect
from tests import published_checkpoints, published_csm, transformers_releases

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_family"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".onnx", ".tgz", ".model", ".mdl")
MIMI, PIECES = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"


def write_moshi_without_config(folder: Path) -> None:
    """Write a release like the first ones, which have no config.json and fixed file names."""
    random_moshi.write_release(folder)
    (folder / "config.json").unlink()
    for name in (MIMI, PIECES):
        (folder / name).touch()


# Functions that write a release, by family; families may have several.
RELEASES: list[tuple[str, Callable[[Path], object]]] = [
    ("bagpiper", lambda folder: published_checkpoints.write_release("bagpiper", folder)),
    ("chatterbox", random_chatterbox.write_release),
    ("chatterbox", lambda folder: random_chatterbox.write_release(folder, is_multilingual=True)),
    ("cosyvoice3", random_cosyvoice3.write_release),
    ("csm", lambda folder: published_csm.write_release(folder, published_csm.make_model())),
    ("csm", lambda folder: published_csm.write_saved(folder, published_csm.make_model())),
    ("fish_s2", random_fish_s2.write_release),
    ("higgs_audio_v2", lambda folder: random_higgs_audio.write_release(folder, random_higgs_audio.make_model())),
    ("higgs_audio_v3", random_higgs_audio_v3.write_release),
    ("kyutai_stt", random_kyutai_stt.write_release),
    ("kyutai_stt", transformers_releases.write_stt),
    ("kyutai_stt", lambda folder: transformers_releases.write_stt(folder, version=4)),
    ("kyutai_tts", random_kyutai_tts.write_release),
    ("kyutai_tts", lambda folder: random_kyutai_tts.write_release(folder, base=random_kyutai_tts.LARGE)),
    ("moshi", random_moshi.write_release),
    ("moshi", write_moshi_without_config),
    ("moshi", transformers_releases.write_moshi),
    ("moss_tts", random_moss.write_release),
    ("moss_tts_local", random_moss_local.write_release),
    ("moss_tts_realtime", random_moss_realtime.write_release),
    ("opuslm", lambda folder: published_checkpoints.write_release("opuslm", folder)),
    ("opuslm_dialogue", lambda folder: published_checkpoints.write_release("opuslm-dialogue", folder)),
    ("orpheus", random_orpheus.write_release),
    ("personaplex", random_personaplex.write_release),
    ("phonon", random_phonon.write_release),
    ("pocket_tts", random_pocket.write_release),
    ("qwen3_omni", random_qwen3_omni.write_release),
    ("qwen3_tts", random_qwen3_tts.write_release),
    ("vibevoice", vibevoice_release.write_release),
    ("vibevoice_realtime", random_vibevoice_realtime.write_release),
    ("vita_audio", random_vita.write_release),
    ("voxcpm2", random_voxcpm2.write_release),
]


class TextsOnly(Folder):
    """Listing of a folder that fails if a weights file is read."""

    def text(self, name: str, max_bytes: int = 1 << 20) -> str | None:
        assert not name.endswith(WEIGHTS), f"{name} was read"
        return super().text(name, max_bytes)


class Texts(Listing):
    """Listing of files given by their texts."""

    def __init__(self, texts: dict[str, Any]):
        self.texts = {name: each if isinstance(each, str) else json.dumps(each) for name, each in texts.items()}
        super().__init__(frozenset(texts), {})

    def text(self, name: str, max_bytes: int = 1 << 20) -> str | None:
        return self.texts.get(name)


@pytest.fixture(autouse=True)
def with_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the example package with a family of its own, as if it were installed."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from stretto_orpheus import PLUGIN

    def all_plugins() -> list[FamilyPlugin]:
        return [*plugins(), PLUGIN]

    monkeypatch.setattr(detection, "plugins", all_plugins)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "write"), RELEASES)
def test_random_release_is_recognised(family: str, write: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    try:
        write(folder)
    except FileExistsError:
        folder.rmdir()
        write(folder)
    entry = detect(TextsOnly(folder), "acme/Some_Voice")
    assert entry.family == family
    assert entry.source.repository == "acme/Some_Voice"
    assert entry.name.startswith("some-voice")
    names = Folder(folder).present(*entry.source.files)
    assert names == entry.source.files, "each pattern matches a file"
    places = [tmp_path / each.source.repository for each in entry.companions]
    words = entry.arguments(folder, places, tmp_path / "view")
    assert words[0] == family.replace("_", "-")
    inside = [Path(word) for word in words if word.startswith(str(folder))]
    assert inside
    assert all(path.exists() for path in inside)


def test_every_convertible_family_has_a_recognised_release() -> None:
    assert {family for family, _ in RELEASES} == {each.replace("-", "_") for each in convertible()} | {"orpheus"}
    assert not [each.name for each in plugins() if each.convert is not None and each.recognise is None]


def test_companions_and_needs() -> None:
    """A missing part of a release comes from another repository, or from the user."""
    talker = {"model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_type": "base"}
    entry = detect(Texts({"config.json": talker, "model.safetensors": ""}))
    assert [each.source.repository for each in entry.companions] == ["Qwen/Qwen3-TTS-Tokenizer-12Hz"]
    assert (entry.needs, entry.convert[-2:]) == (("recording",), ("--codec", "{companion1}"))
    authors = {"model_type": "vibevoice", "acoustic_tokenizer_config": {}}
    entry = detect(Texts({"config.json": authors, "model.safetensors": ""}))
    assert [each.source.repository for each in entry.companions] == ["Qwen/Qwen2.5-1.5B"]
    entry = detect(Texts({"config.json": {"model_type": "vibevoice_streaming"}, "model.safetensors": ""}))
    assert [each.source.repository for each in entry.companions] == [
        "mnmly/VibeVoice-Realtime-0.5B-mlx",
        "Qwen/Qwen2.5-0.5B",
    ]
    assert entry.convert == ("--model", "{view}")
    voices = {"model_type": "tts", "dep_q": 32, "mimi_name": "m.safetensors", "tokenizer_name": "t.model"}
    voices |= {"conditioners": {"cfg": {}}, "model_id": {"sig": "ab", "epoch": 3}, "moshi_name": "lm.safetensors"}
    files = {"config.json": voices, "m.safetensors": "", "t.model": "", "lm.safetensors": ""}
    entry = detect(Texts(files))
    (companion,) = entry.companions
    assert (companion.to, companion.source.files) == ("voices", ("voice-donations/*.ab@3.safetensors",))
    assert entry.convert[:2] == ("--model", "{view}/lm.safetensors")
    plus = {"config.json": {"model_type": "qwen2_mtp_sensevoice"}, "model.safetensors": ""}
    assert [each.to for each in detect(Texts(plus)).companions] == [None, "."]


QWEN = {"model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_type": "base"}
LATENTS = {"lm_config": {}, "encoder_config": {}, "dit_config": {}}
MOSS = {"model_type": "moss_tts_delay"}
PHONON = {"flow_lm": {}, "mimi": {}, "eos_threshold": 0}
HIGGS = {"model_type": "higgs_multimodal_qwen3", "audio_encoder_config": {"encoder_type": "discrete"}}
KYUTAI = {"dim": 8, "n_q": 16, "mimi_name": "m.safetensors", "tokenizer_name": "t.model"}
NEAR_MISSES: dict[str, tuple[dict[str, Any], str]] = {
    "plain Llama": ({"config.json": {"model_type": "llama"}, "model.safetensors": "", "tokenizer.json": {}}, "'llama'"),
    "plain Qwen2": ({"config.json": {"model_type": "qwen2"}, "model.safetensors": ""}, "model_type 'qwen2'"),
    "Whisper": ({"config.json": {"model_type": "whisper"}, "model.safetensors": ""}, "not a release of a supported"),
    "empty config": ({"config.json": "", "model.safetensors": ""}, "not a release of a supported family"),
    "list as config": ({"config.json": [1], "model.safetensors": ""}, "not a release of a supported family"),
    "nested config": ({"config.json": "[" * 100_000, "model.safetensors": ""}, "not a release of a supported family"),
    "README only": ({"README.md": "voice"}, "not a release of a supported family"),
    "VibeVoice Realtime without weights": (
        {"config.json": {"model_type": "vibevoice_streaming"}},
        "VibeVoice Realtime: expected model.safetensors",
    ),
    "VibeVoice without weights": ({"config.json": {"model_type": "vibevoice"}}, "expected model.safetensors"),
    "CosyVoice 2": ({"cosyvoice2.yaml": "a: 1", "llm.pt": ""}, "of CosyVoice 3, got cosyvoice2.yaml"),
    "CosyVoice 3 without flow": ({"cosyvoice3.yaml": "a: 1", "llm.pt": ""}, "flow.pt is missing"),
    "Boson's Higgs Audio": ({"config.json": {"model_type": "higgs_audio"}, "model.safetensors": ""}, "transformers"),
    "Higgs Audio shards": (
        {"config.json": {"model_type": "higgs_audio_v2"}},
        "Higgs Audio v2: expected model.safetensors",
    ),
    "Higgs Audio v3 for recognition": (
        {"config.json": HIGGS | {"audio_encoder_config": {"encoder_type": "whisper"}}, "model.safetensors": ""},
        "audio_encoder_config.encoder_type: expected 'discrete', got 'whisper'",
    ),
    "Fish Audio S2 without its codec": (
        {"config.json": {"model_type": "fish_qwen3_omni"}, "model.safetensors": "", "tokenizer.json": {}},
        "Fish Audio S2: expected model.safetensors or the files of its index, codec.pth and tokenizer.json",
    ),
    "Higgs Audio v3 without a tokenizer": ({"config.json": HIGGS, "model.safetensors": ""}, "and tokenizer.json"),
    "Sesame's CSM": ({"config.json": {"model_type": "csm"}, "ckpt.pt": "", "model.safetensors": ""}, "Sesame's names"),
    "Kyutai STT without weights": (
        {"config.json": {"model_type": "kyutai_speech_to_text"}},
        "model.safetensors, which a release in transformers format must have, is missing",
    ),
    "Kyutai STT without delays": (
        {"config.json": {"model_type": "kyutai_speech_to_text"}, "model.safetensors": "", "tokenizer.json": ""},
        "preprocessor_config.json, which a release in transformers format must have, is missing",
    ),
    "Moshi without a tokenizer": (
        {"config.json": {"model_type": "moshi"}, "model.safetensors": ""},
        "tokenizer.json, which a release in transformers format must have, is missing",
    ),
    "Moshi in 8 bits": ({"config.json": KYUTAI | {"dep_q": 8}, "model.q8.safetensors": ""}, "got model.q8.safetensors"),
    "Moshi without Mimi": (
        {"config.json": KYUTAI | {"dep_q": 8}, "model.safetensors": "", "t.model": ""},
        "m.safetensors, which the release must have",
    ),
    "MOSS-TTS-Local without weights": (
        {"config.json": {"model_type": "moss_tts_local"}},
        "MOSS-TTS-Local: expected model.safetensors",
    ),
    "MOSS-TTS-Local 1.0": (
        {"config.json": MOSS | {"local_num_layers": 4}},
        "local_num_layers: expected no value, got 4",
    ),
    "MOSS-TTS-Local with a long value": (
        {"config.json": MOSS | {"local_num_layers": "a" * 1000}},
        "local_num_layers: expected no value, got 'a{59}…$",
    ),
    "Qwen3-TTS with a list as its kind": (
        {"config.json": QWEN | {"tts_model_type": []}, "model.safetensors": ""},
        r"tts_model_type: expected custom_voice, voice_design, base, got \[\]",
    ),
    "MOSS-TTS-Nano": ({"config.json": {"model_type": "moss_tts_nano"}}, "MOSS-TTS-Nano is not supported"),
    "MOSS-TTS-Realtime without weights": (
        {"config.json": {"model_type": "moss_tts_realtime"}},
        "MOSS-TTS-Realtime: expected model.safetensors",
    ),
    "MOSS-TTS without weights": ({"config.json": MOSS}, "MOSS-TTS: expected model.safetensors"),
    "Phonon of transformers without weights": (
        {"config.json": {"model_type": "gradium_phonon_tts"}, "tokenizer.json": {}},
        "phonon in transformers format: no model.safetensors",
    ),
    "Phonon without voices": (
        {"config.json": PHONON, "model.safetensors": "", "tokenizer.json": {}},
        r"Phonon: no voices/\*.safetensors",
    ),
    "Pocket TTS of transformers without a tokenizer": (
        {"config.json": {"model_type": "pocket_tts"}, "model.safetensors": ""},
        "pocket_tts in transformers format: no tokenizer.json",
    ),
    "Pocket TTS without YAML": (
        {"model.safetensors": "", "tokenizer.json": {}, "embeddings/a.safetensors": ""},
        "no YAML file with flow_lm and mimi",
    ),
    "AWQ": ({"config.json": QWEN | {"quantization_config": {"quant_method": "awq"}}}, "quantized weights .'awq'."),
    "Qwen3-TTS at 25 Hz": (
        {"config.json": QWEN | {"tokenizer_type": "qwen3_tts_tokenizer_25hz"}, "model.safetensors": ""},
        "tokenizer_type: expected qwen3_tts_tokenizer_12hz, got 'qwen3_tts_tokenizer_25hz'",
    ),
    "Qwen3-TTS of another kind": (
        {"config.json": QWEN | {"tts_model_type": "singing"}, "model.safetensors": ""},
        "tts_model_type: expected custom_voice, voice_design, base, got 'singing'",
    ),
    "VoxCPM 1": (
        {"config.json": LATENTS | {"architecture": "voxcpm"}, "audiovae.pth": "", "model.safetensors": ""},
        "architecture: expected voxcpm2, got 'voxcpm'",
    ),
    "VoxCPM2 with a mean head": (
        {"config.json": LATENTS | {"dit_config": {"dit_mean_mode": True}}, "audiovae.pth": "", "model.safetensors": ""},
        "dit_mean_mode: expected false",
    ),
    "VoxCPM2 without codec": ({"config.json": LATENTS, "model.safetensors": ""}, "audiovae.safetensors or audiovae"),
    "Chatterbox without S3Gen": ({"t3_cfg.safetensors": "", "conds.pt": ""}, "s3gen.safetensors is missing"),
    "YAML with a tag": ({"t3.yaml": "a: !!python/object:os.system {}", "model.pth": ""}, "not a release"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_is_refused(name: str) -> None:
    texts, message = NEAR_MISSES[name]
    with pytest.raises(Unavailable, match=message) as raised:
        detect(Texts(texts), "acme/voice")
    assert str(raised.value).startswith("acme/voice: ")
    assert "\n" not in str(raised.value)


def test_part_selects_one_of_several_models() -> None:
    files = ["t3_cfg", "s3gen", "ve", "t3_mtl23ls_v3"]
    texts = {f"{name}.safetensors": "" for name in files}
    texts |= {"tokenizer.json": "", "conds.pt": "", "s3gen.pt": "", "ve.pt": ""}
    texts["grapheme_mtl_merged_expanded_v1.json"] = ""
    with pytest.raises(BadArgument, match=r"repository with 2 models: acme/x#t3_cfg, acme/x#t3_mtl23ls_v3$"):
        detect(Texts(texts), "acme/x")
    entry = detect(Texts(texts), "acme/x", part="t3_mtl23ls_v3")
    assert (entry.name, entry.convert[1]) == ("x-t3-mtl23ls-v3", "{repo}/t3_mtl23ls_v3.safetensors")
    with pytest.raises(Unavailable, match="acme/x#t4: no such model; expected t3_cfg or t3_mtl23ls_v3"):
        detect(Texts(texts), "acme/x", part="t4")


def test_languages_of_a_repository_use_packaged_configs() -> None:
    texts = {
        f"languages/{language}/{name}": ""
        for language in ("english", "french_24l", "klingon")
        for name in ("model.safetensors", "tokenizer.json", "embeddings/alba.safetensors")
    }
    with pytest.raises(BadArgument, match="with 2 models: acme/p#languages/english, acme/p#languages/french_24l"):
        detect(Texts(texts), "acme/p")
    entry = detect(Texts(texts), "acme/p", part="languages/english")
    assert entry.arguments(Path("/r")) == ["pocket-tts", "--model", "/r/languages/english"]
    with pytest.raises(Unavailable, match="languages/klingon has no YAML file"):
        detect(Texts(texts), "acme/p", part="languages/klingon")


@pytest.mark.parametrize(("family", "kind"), [("pocket_tts", "pocket_tts"), ("phonon", "gradium_phonon_tts")])
def test_codec_of_transformers_layout_is_the_processors(family: str, kind: str) -> None:
    """A folder on the machine that made the release is no repository; then the user names one."""
    texts: dict[str, Any] = {"config.json": {"model_type": kind}, "model.safetensors": "", "tokenizer.json": {}}
    for place, companions, requires in (("acme/codec", ["acme/codec"], ()), ("/home/codec", [], ("codec",))):
        texts["processor_config.json"] = {"audio_tokenizer": {"audio_tokenizer_name_or_path": place}}
        entry = detect(Texts(texts), "acme/voice")
        assert entry.family == family
        assert [each.source.repository for each in entry.companions] == companions
        assert entry.requires == requires


def test_family_must_match() -> None:
    texts = {"config.json": QWEN, "model.safetensors": ""}
    for family in ("qwen3-tts", "qwen3_tts"):
        assert detect(Texts(texts), family=family).family == "qwen3_tts"
    with pytest.raises(Unavailable, match="not a release of csm; installed families: bagpiper"):
        detect(Texts(texts), "acme/x", family="csm")


def test_release_of_two_families_is_refused() -> None:
    opuslm = "token_list: []\ntoken_bias: {codec: [0, 1]}\nsubword_model: a/b\n"
    texts = {"config.json": QWEN, "model.safetensors": "", "config.yaml": opuslm, "m.pth": ""}
    with pytest.raises(BadArgument, match="acme/x: fits opuslm and qwen3_tts; choose one with --family"):
        detect(Texts(texts), "acme/x")
    assert detect(Texts(texts), "acme/x", family="opuslm").family == "opuslm"


def test_checkpoint_is_refused() -> None:
    with pytest.raises(BadArgument, match="expected a release, got a checkpoint of tiny"):
        detect(Texts({"config.json": {"speech_family": "tiny"}}), "./x")


def test_known_repository_keeps_its_licence() -> None:
    repository = "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice"
    entry = detect(Texts({"config.json": QWEN, "model.safetensors": ""}), repository)
    assert (entry.source.licence.id, entry.source.gated, entry.source.revision) == ("Apache-2.0", "no", None)
    assert entry.unproved == ("revision", "sizes")
    entry = detect(Texts({"config.json": QWEN, "model.safetensors": ""}), "acme/tuned")
    assert (entry.source.licence.id, entry.unproved[2:]) == ("unknown", ("licence", "gated"))


def test_repository_of_one_release_has_its_facts() -> None:
    known = find("qwen3-tts")
    assert known is not None
    entry = detect(Texts({"config.json": QWEN, "model.safetensors": ""}), known.source.repository)
    assert entry.default_voice == known.default_voice == "ryan"
    assert entry.shape == known.shape is not None
    assert detect(Texts({"config.json": QWEN, "model.safetensors": ""}), "acme/tuned").shape is None


def test_failing_rule_does_not_affect_other_families(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    broken = FamilyPlugin("broken", lambda vocabulary: None, recognise="json:loads")  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(detection, "plugins", lambda: [broken, *plugins()])
    assert detect(Texts({"config.json": QWEN, "model.safetensors": ""})).family == "qwen3_tts"
    assert "json:loads: cannot recognise releases" in caplog.text


def test_detection_imports_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "model.safetensors").touch()
    program = (
        "import sys; from pathlib import Path; from stretto.releases.target import detect; "
        "from stretto.releases.target import Folder; print(detect(Folder(Path(sys.argv[1]))).family, "
        "*{'torch', 'vllm', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["qwen3_tts"]
