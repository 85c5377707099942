"""Detection of releases: each random release is recognised by names and configs, and near misses are refused."""

import json
import subprocess
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from lab.releases import random_orpheus
from lab.releases.codec_cases import of_plugins
from lab.releases.layouts import Layout, whole
from stretto.convert.release import convertible
from stretto.family.plugin import FamilyPlugin, plugins
from stretto.family.recognition import Listing, Match
from stretto.releases import target as detection
from stretto.releases.catalogue import find
from stretto.releases.messages import BadArgument, ReleaseError, Unavailable
from stretto.releases.target import Folder, detect
from tests.family_releases import LAYOUTS

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_family"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".onnx", ".tgz", ".model", ".mdl", ".nemo")
ORPHEUS = Layout("orpheus", lambda folder: whole(random_orpheus.write_release(folder / "release")), {"release": ("*",)})
RELEASES = LAYOUTS | {"example": ORPHEUS}


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
@pytest.mark.parametrize("layout", RELEASES.values(), ids=RELEASES)
def test_random_release_is_recognised(layout: Layout, tmp_path: Path) -> None:
    """Its repository has no files of companions."""
    written = tmp_path / "written"
    written.mkdir()
    layout.command(written)
    release = next(iter(layout.files))
    folder = tmp_path / "published"
    folders = [place for place in layout.files if place == release or place.startswith(f"{release}/")]
    patterns = [f"{place}/{pattern}".removeprefix("./") for place in folders for pattern in layout.files[place]]
    for path in sorted(written.rglob("*")):
        name = path.relative_to(written).as_posix()
        if path.is_file() and any(fnmatchcase(name, pattern) for pattern in (*patterns, *layout.added)):
            published = folder / path.relative_to(written / release)
            published.parent.mkdir(parents=True, exist_ok=True)
            path.rename(published)
    entry = detect(TextsOnly(folder), "acme/Some_Voice")
    assert entry.family.replace("_", "-") == layout.family
    assert entry.source.repository == "acme/Some_Voice"
    assert entry.name.startswith("some-voice")
    assert Folder(folder).present(*entry.source.files) == entry.source.files, "each pattern matches a file"
    companions = [tmp_path / companion.source.repository for companion in entry.companions]
    words = entry.arguments(folder, companions, tmp_path / "view")
    assert words[0] == layout.family
    inside = [Path(word) for word in words if word.startswith(str(folder))]
    assert inside or str(tmp_path / "view") in words
    assert all(path.exists() for path in inside)


def test_every_convertible_family_has_a_recognised_release() -> None:
    assert {layout.family for layout in LAYOUTS.values()} == {*convertible()}
    assert not [plugin.name for plugin in plugins() if plugin.convert is not None and plugin.recognise is None]


QWEN = {"model_type": "qwen3_tts", "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_type": "base"}
DETECTED: dict[str, tuple[Mapping[str, Any], str | None, dict[str, Any]]] = {
    "Qwen3-TTS without its codec": (
        {"config.json": QWEN, "model.safetensors": ""},
        None,
        {"repositories": ["Qwen/Qwen3-TTS-Tokenizer-12Hz"], "needs": ("recording",), "codec": "{companion1}"},
    ),
    "VITA-Audio-Plus": (
        {"config.json": {"model_type": "qwen2_mtp_sensevoice"}, "model.safetensors": ""},
        None,
        {"folders": [None, "."]},
    ),
}
ACCEPTED = DETECTED | of_plugins("DETECTED", "releases")


@pytest.mark.parametrize("name", ACCEPTED)
def test_listing_is_detected(name: str) -> None:
    """A missing part of a release comes from another repository, or from the user."""
    texts, part, expected = ACCEPTED[name]
    entry = detect(Texts(texts), "acme/x", part)
    options = dict(zip(entry.convert[::2], entry.convert[1::2], strict=True))
    sources = [companion.source for companion in entry.companions]
    fields: dict[str, Any] = {
        **vars(entry),
        "model": options["--model"],
        "codec": options.get("--codec"),
        "repositories": [source.repository for source in sources],
        "files": [source.files for source in sources],
        "folders": [companion.to for companion in entry.companions],
    }
    assert {name: fields[name] for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "plain Llama": ({"config.json": {"model_type": "llama"}, "model.safetensors": "", "tokenizer.json": {}}, "'llama'"),
    "plain Qwen2": ({"config.json": {"model_type": "qwen2"}, "model.safetensors": ""}, "model_type 'qwen2'"),
    "Whisper": ({"config.json": {"model_type": "whisper"}, "model.safetensors": ""}, "not a release of a supported"),
    "empty config": ({"config.json": "", "model.safetensors": ""}, "not a release of a supported family"),
    "list as config": ({"config.json": [1], "model.safetensors": ""}, "not a release of a supported family"),
    "nested config": ({"config.json": "[" * 100_000, "model.safetensors": ""}, "not a release of a supported family"),
    "README only": ({"README.md": "voice"}, "not a release of a supported family"),
    "Sesame's CSM": ({"config.json": {"model_type": "csm"}, "ckpt.pt": "", "model.safetensors": ""}, "Sesame's names"),
    "Qwen3-TTS with a list as its kind": (
        {"config.json": QWEN | {"tts_model_type": []}, "model.safetensors": ""},
        r"tts_model_type: expected custom_voice, voice_design, base, got \[\]",
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
    "YAML with a tag": ({"t3.yaml": "a: !!python/object:os.system {}", "model.pth": ""}, "not a release"),
}
NEAR_MISSES = REFUSED | of_plugins("REFUSED", "releases")


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_is_refused(name: str) -> None:
    texts, message = NEAR_MISSES[name]
    with pytest.raises(ReleaseError, match=message) as raised:
        detect(Texts(texts), "acme/voice")
    assert str(raised.value).startswith("acme/voice: ")
    assert "\n" not in str(raised.value)


def two_parts(listing: Listing) -> list[Match]:
    """Recognise two models in any listing, as the function of a plug-in."""
    return [Match("tiny", ("*",), ("--model", f"{{repo}}/{part}"), part=part) for part in ("one", "other")]


def test_part_selects_one_of_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    function = f"{__name__}:two_parts"
    several = FamilyPlugin("tiny", lambda vocabulary: None, recognise=function)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(detection, "plugins", lambda: [several])
    with pytest.raises(BadArgument, match=r"repository with 2 models: acme/x#one, acme/x#other$"):
        detect(Texts({"a": ""}), "acme/x")
    entry = detect(Texts({"a": ""}), "acme/x", part="other")
    assert (entry.name, entry.convert[1]) == ("x-other", "{repo}/other")
    with pytest.raises(Unavailable, match="acme/x#third: no such model; expected one or other"):
        detect(Texts({"a": ""}), "acme/x", part="third")


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
