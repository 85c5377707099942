"""A small random release of each family: its files have the names of a published repository.

The names come from listings of the repositories and from programs that load them. Some are patterns, because small
releases have fewer shards and voices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.releases import random_glm4_voice, random_qwen3_codec, random_qwen3_tts, random_vita
from lab.releases.random_tensors import INDEX, split_weights
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
from tests import published_checkpoints, published_csm, published_xeus, transformers_releases

SHALLOW = {"num_layers": 1, "depformer_num_layers": 1}
SHARD = "model-0000?-of-0000?.safetensors"


@dataclass(frozen=True)
class Layout:
    """Layout of a published release.

    Attributes:
        family: Name of the family on the command line.
        write: Function that writes a release to a new folder and returns the converter's further arguments.
        files: Names of the files by folder: a repository, or a folder of one.
        added: Files of the small releases that no repository has.
    """

    family: str
    write: Callable[[Path], list[str | Path]]
    files: dict[str, tuple[str, ...]]
    added: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        """Write the release and return the converter's arguments, except `--out`."""
        return [self.family, *(str(word) for word in self.write(folder))]


def _whole(release: Path) -> list[str | Path]:
    return ["--model", release]


def _hugging_face(release: Path) -> list[str | Path]:
    return ["--model", release, "--config", release / "config.json", "--tokenizer", release]


def _kyutai(write: Callable[..., Path], **changed: Any) -> Callable[[Path], list[str | Path]]:
    return lambda folder: _whole(write(folder / "release", **SHALLOW, **changed))


def _chatterbox(is_multilingual: bool) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        release = random_chatterbox.write_release(folder / "release", is_multilingual)
        return [*random_chatterbox.command(release, folder)[1:-2]]

    return write


def _turbo(sizes: random_chatterbox.Gpt2Sizes) -> Callable[[Path], list[str | Path]]:
    return lambda folder: _whole(random_chatterbox.write_turbo(folder / "release", sizes))


def _pocket(folder: Path) -> list[str | Path]:
    """The YAML file is in the authors' package."""
    release = random_pocket.write_release(folder / "english")
    (release / "config.yaml").rename(folder / "english.yaml")
    return [*_whole(release), "--config", folder / "english.yaml"]


def _espnet(family: str) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        published = published_checkpoints.write_release(family, folder)
        words: list[str | Path] = [*published_checkpoints.command(family, published, folder)[1:-2]]
        if family == "bagpiper":
            (folder / "config.yaml").rename(folder / "train_bagpiper_tts.yaml")
            (folder / "inference.yaml").write_text("{}")
            words[words.index("--config") + 1] = folder / "train_bagpiper_tts.yaml"
        return words

    return write


def _opuslm(folder: Path) -> list[str | Path]:
    words = _espnet("opuslm")(folder)
    xeus = published_xeus.write_xeus(folder / "xeus")
    return [*words, "--ssl-tokenizer", xeus]


def _qwen3_tts(kind: str) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        config = random_qwen3_tts.small_config(kind, codebooks=16, codes=2048)
        release = random_qwen3_tts.write_release(folder / "release", config)
        (release / "generation_config.json").write_text("{}")
        codec = random_qwen3_codec.write_qwen3_codec(release / "speech_tokenizer", "small")
        return [*_hugging_face(release), "--codec", codec]

    return write


def _qwen3_omni(folder: Path) -> list[str | Path]:
    release = random_qwen3_omni.write_release(folder / "release")
    return ["--model", release / INDEX, "--config", release / "config.json", "--tokenizer", release]


def _csm(folder: Path) -> list[str | Path]:
    """Sesame's own files of the weights are in the same repository."""
    release = published_csm.write_release(folder / "release", published_csm.make_model())
    for name in ("model.safetensors", "ckpt.pt"):
        (release.folder / name).write_bytes(b"not read")
    return [*release.command[1:]]


def _saved_csm(folder: Path) -> list[str | Path]:
    release = published_csm.write_saved(folder / "release", published_csm.make_model())
    return [*release.command[1:]]


def _higgs_audio(folder: Path) -> list[str | Path]:
    release = random_higgs_audio.write_release(folder / "release", random_higgs_audio.make_model())
    return [*release.command[1:]]


def _moss_tts(folder: Path) -> list[str | Path]:
    release = random_moss.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss.command(release)[1:]]


def _moss_tts_local(folder: Path) -> list[str | Path]:
    release = random_moss_local.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss_local.command(release)[1:]]


def _moss_tts_realtime(folder: Path) -> list[str | Path]:
    release = random_moss_realtime.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss_realtime.command(release)[1:]]


def _fish_s2(folder: Path) -> list[str | Path]:
    release = random_fish_s2.write_release(folder / "release", "deep")
    (release / "special_tokens_map.json").write_text("{}")
    split_weights(release, 2)
    return [*random_fish_s2.command(release)[1:]]


def _vibevoice(folder: Path) -> list[str | Path]:
    release = vibevoice_release.write_release(folder / "release")
    split_weights(release, 3)
    return _hugging_face(release)


def _voxcpm2(folder: Path) -> list[str | Path]:
    return _whole(random_voxcpm2.write_release(folder / "release"))


def _cosyvoice3(folder: Path) -> list[str | Path]:
    return _whole(random_cosyvoice3.write_release(folder / "release"))


def _vita_audio(config: dict[str, Any]) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        release = random_vita.write_release(folder / "release", config)
        split_weights(release, 4)
        codec = random_glm4_voice.write_glm4_voice(folder / "codec")
        words = [*_hugging_face(release), "--codec", codec]
        if config is random_vita.PLUS:
            return words
        return [*words, "--ssl-tokenizer", random_glm4_voice.write_glm4_tokenizer(folder / "tokenizer")]

    return write


MIMI, STT_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors", "mimi-pytorch-e351c8d8@125.safetensors"
TTS_TOKENIZER = "tokenizer_spm_8k_en_fr_audio.model"
BPE = ("vocab.json", "merges.txt", "tokenizer_config.json")
TOKENIZER = ("tokenizer.json", *BPE)  # some repositories have no BPE files
CODEC_OF_QWEN = ("config.json", "model.safetensors", "preprocessor_config.json")
GLM_4_VOICE = {
    "codec": ("config.yaml", "flow.pt", "hift.pt"),  # THUDM/glm-4-voice-decoder
    "tokenizer": ("config.json", "model.safetensors", "preprocessor_config.json"),  # THUDM/glm-4-voice-tokenizer
}
VITA = ("config.json", "generation_config.json", SHARD, INDEX, *TOKENIZER)
ESPNET_DAC = ("config.yaml", "360epoch.pth")  # ftshijt/espnet_codec_dac_large_v1.4_360epoch
TURBO = ("s3gen_meanflow.safetensors", "ve.safetensors", "conds.pt", "vocab.json", "merges.txt", "added_tokens.json")
OWN_VOICE = ("release/voices/*.pt",)
SAVED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LAYOUTS = {
    "kyutai/stt-1b-en_fr": Layout(
        "kyutai-stt",
        _kyutai(random_kyutai_stt.write_release),
        {"release": ("config.json", "model.safetensors", STT_MIMI, "tokenizer_en_fr_audio_8000.model")},
        ("release/mimi.json",),
    ),
    "kyutai/stt-2.6b-en": Layout(
        "kyutai-stt",
        _kyutai(
            random_kyutai_stt.write_release,
            moshi_name="model.safetensors",
            tokenizer_name="tokenizer_en_audio_4000.model",
        ),
        {"release": ("config.json", "model.safetensors", STT_MIMI, "tokenizer_en_audio_4000.model")},
        ("release/mimi.json",),
    ),
    "Kyutai STT saved by transformers": Layout(  # as kyutai/stt-2.6b-en-trfs
        "kyutai-stt",
        lambda folder: _whole(transformers_releases.write_stt(folder / "release", num_layers=1)),
        {"release": (*SAVED, "processor_config.json")},
    ),
    "kyutai/tts-0.75b-en-public": Layout(
        "kyutai-tts",
        _kyutai(random_kyutai_tts.write_release),
        {"release": ("config.json", "dsm_tts_d6ef30c7@1000.safetensors", MIMI, TTS_TOKENIZER)},
        ("release/mimi.json",),
    ),
    "kyutai/tts-1.6b-en_fr": Layout(
        "kyutai-tts",
        _kyutai(random_kyutai_tts.write_release, base=random_kyutai_tts.LARGE),
        {
            "release": ("config.json", "dsm_tts_1e68beda@240.safetensors", MIMI, TTS_TOKENIZER),
            "release/voices": ("expresso/*.wav.1e68beda@240.safetensors", "vctk/*.wav.1e68beda@240.safetensors"),
        },
        ("release/mimi.json",),
    ),
    "kyutai/moshika-pytorch-bf16": Layout(
        "moshi",
        _kyutai(random_moshi.write_release),
        {"release": ("config.json", "model.safetensors", MIMI, "tokenizer_spm_32k_3.model")},
        ("release/mimi.json",),
    ),
    "Moshi saved by transformers": Layout(  # as kmhf/hf-moshiko
        "moshi",
        lambda folder: _whole(transformers_releases.write_moshi(folder / "release", **SHALLOW)),
        {"release": SAVED},
    ),
    "nvidia/personaplex-7b-v1": Layout(
        "personaplex",
        _kyutai(random_personaplex.write_release),
        {"release": ("config.json", "model.safetensors", MIMI, "tokenizer_spm_32k_3.model", "voices.tgz")},
        ("release/mimi.json",),
    ),
    "ResembleAI/chatterbox": Layout(
        "chatterbox",
        _chatterbox(is_multilingual=False),
        {"release": ("t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json", "conds.pt")},
        ("release/backbone.json", *OWN_VOICE),
    ),
    "ResembleAI/chatterbox, multilingual": Layout(
        "chatterbox",
        _chatterbox(is_multilingual=True),
        {
            "release": (
                "t3_mtl23ls_v3.safetensors",
                *("s3gen.pt", "ve.pt", "conds.pt"),
                *("grapheme_mtl_merged_expanded_v1.json", "Cangjie5_TC.json"),
            )
        },
        ("release/backbone.json", *OWN_VOICE),
    ),
    "ResembleAI/chatterbox-turbo": Layout(
        "chatterbox", _turbo(random_chatterbox.TURBO), {"release": ("t3_turbo_v1.safetensors", *TURBO)}, OWN_VOICE
    ),
    "ResembleAI/chatterbox-nano": Layout(
        "chatterbox", _turbo(random_chatterbox.NANO), {"release": ("t3_nano_v1.safetensors", *TURBO)}, OWN_VOICE
    ),
    "FunAudioLLM/Fun-CosyVoice3-0.5B-2512": Layout(
        "cosyvoice3",
        _cosyvoice3,
        {
            "release": (
                "cosyvoice3.yaml",
                *("llm.pt", "flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v3.onnx"),
            ),
            "release/CosyVoice-BlankEN": ("config.json", *BPE),
        },
    ),
    "kyutai/pocket-tts-without-voice-cloning": Layout(
        "pocket-tts",
        _pocket,
        {".": ("english.yaml",), "english": ("model.safetensors", "tokenizer.json", "embeddings/*.safetensors")},
    ),
    "gradium/phonon-31m-en": Layout(
        "phonon",
        lambda folder: _whole(random_phonon.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors", "tokenizer.json", "voices/*.safetensors")},
    ),
    # The voices are those of the authors' code, in the format of another repository, and the tokenizer is Qwen2.5's.
    "microsoft/VibeVoice-Realtime-0.5B": Layout(
        "vibevoice-realtime",
        lambda folder: _whole(random_vibevoice_realtime.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors")},
        ("release/tokenizer.json", "release/voices/*.pt", "release/voices/*.safetensors"),
    ),
    "espnet/bagpiper-tts-sft": Layout(
        "bagpiper",
        _espnet("bagpiper"),
        {
            ".": ("model.pt", "train_bagpiper_tts.yaml", "inference.yaml"),
            "codec": ("config.json", "model.safetensors"),  # hf-audio/xcodec-hubert-general
            "tokenizer": ("config.json", *TOKENIZER),  # Qwen/Qwen3-8B-Base
        },
        ("audio/config.json",),
    ),
    "espnet/OpusLM_7B_Anneal": Layout(
        "opuslm",
        _opuslm,
        {
            ".": ("model.pth", "config.yaml"),
            "codec": ESPNET_DAC,
            "tokenizer": TOKENIZER,
            "xeus/model": ("xeus_checkpoint_new.pth", "config.yaml", "km_opus_lm.mdl"),
        },
        ("backbone/config.json",),
    ),
    "espnet/multi_turn_SDS_RLAIF": Layout(
        "opuslm-dialogue",
        _espnet("opuslm-dialogue"),
        {".": ("2epoch.pth", "config.yaml"), "codec": ESPNET_DAC, "tokenizer": TOKENIZER},
        ("backbone/config.json",),
    ),
    "VITA-MLLM/VITA-Audio-Boost": Layout(
        "vita-audio", _vita_audio(random_vita.SMALL), {"release": VITA, **GLM_4_VOICE}
    ),
    "VITA-MLLM/VITA-Audio-Plus-Boost": Layout(
        "vita-audio",
        _vita_audio(random_vita.PLUS),
        {"release": (*VITA, "config.yaml", "am.mvn"), "codec": GLM_4_VOICE["codec"]},
    ),
    "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": Layout(
        "qwen3-tts",
        _qwen3_tts("custom_voice"),
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *BPE),
            "release/speech_tokenizer": CODEC_OF_QWEN,
        },
    ),
    "Qwen/Qwen3-TTS-12Hz-1.7B-Base": Layout(
        "qwen3-tts",
        _qwen3_tts("base"),
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *BPE),
            "release/speech_tokenizer": CODEC_OF_QWEN,
        },
    ),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": Layout(
        "qwen3-omni", _qwen3_omni, {"release": ("config.json", SHARD, INDEX, *BPE)}
    ),
    "sesame/csm-1b": Layout(
        "csm",
        _csm,
        {
            "release": (
                "config.json",
                "generation_config.json",
                *("transformers-0000?-of-0000?.safetensors", "transformers.safetensors.index.json"),
                *("model.safetensors", "ckpt.pt", *TOKENIZER),
            )
        },
    ),
    "CSM saved by transformers": Layout(
        "csm",
        _saved_csm,
        {"release": ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER)},
    ),
    "bosonai/higgs-tts-2-3b-base": Layout(
        "higgs-audio-v2",
        _higgs_audio,
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER),
            "tokenizer": ("config.json", "model.safetensors"),
        },
    ),
    "bosonai/higgs-tts-3-4b": Layout(
        "higgs-audio-v3",
        lambda folder: _hugging_face(random_higgs_audio_v3.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json")},
        ("release/vocab.json", "release/merges.txt"),
    ),
    "OpenMOSS-Team/MOSS-TTS-v1.5": Layout(
        "moss-tts",
        _moss_tts,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer
        },
    ),
    "OpenMOSS-Team/MOSS-TTS-Local-Transformer-v1.5": Layout(
        "moss-tts-local",
        _moss_tts_local,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer-v2
        },
    ),
    "OpenMOSS-Team/MOSS-TTS-Realtime": Layout(
        "moss-tts-realtime",
        _moss_tts_realtime,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer
        },
    ),
    "fishaudio/s2-pro": Layout(
        "fish-s2",
        _fish_s2,
        {
            "release": (
                *("config.json", SHARD, INDEX, "codec.pth"),
                *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
            )
        },
        ("release/vocab.json", "release/merges.txt"),
    ),
    "vibevoice/VibeVoice-1.5B-hf": Layout(
        "vibevoice",
        _vibevoice,
        {"release": ("config.json", "generation_config.json", SHARD, INDEX, "tokenizer.json")},
    ),
    "openbmb/VoxCPM2": Layout(
        "voxcpm2", _voxcpm2, {"release": ("config.json", "model.safetensors", "audiovae.pth", "tokenizer.json")}
    ),
}
