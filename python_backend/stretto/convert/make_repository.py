"""Create a Triton model repository for a converted checkpoint, with the model profile that clients read."""

import argparse
import json
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from stretto.aligning.model import check_config, read_alphabet
from stretto.codecs.base import Codec
from stretto.config import DecoderConfig, EngineConfig
from stretto.convert.conversion import fresh_directory
from stretto.convert.profiles import (
    BALANCED,
    GIVEN,
    GPU_FORMATS,
    MEMORY,
    ONLINE,
    PROFILES,
    QUANTIZATIONS,
    add_profile,
    bytes_per_row,
    condition_bytes,
    engine_arguments,
    file_bytes,
    quantization,
    speaker_arguments,
    window,
)
from stretto.decoder.memory import measure
from stretto.errors import CheckpointError, CommandParser, argument_path, shown
from stretto.family.base import Family, Task
from stretto.family.conversion import AUDIO_TOKENIZER
from stretto.family.plugin import config_at, family_at, plugin
from stretto.family.pronunciations import alphabets
from stretto.family.served import speaking_folder
from stretto.launcher.installation import bundled_repository
from stretto.launcher.options import RepositoryOptions
from stretto.machine.gpus import GIB, MIB, bytes_of_gpu, gibibytes, gpu_number, percentage
from stretto.machine.sizing import Needs, latent_bytes, longest_rows
from stretto.preprocessing.request import Preprocessor
from stretto.untrusted_files import json_object
from stretto_contract.schema import MOST_ROWS
from stretto_contract.speech_checks import USUAL_SIGNALS

PARAMETER = "profile"
REACH_S = 0.1  # duration of later audio that a sample depends on, because of the filters that resample and mark audio


def profile(
    family: Family, sample_rate: int, frame_rate: float, has_aligner: bool = False, lookahead_frames: int = 0
) -> str:
    """Return the model profile as one line of JSON without single quotes, so that it can be quoted in a config.

    `sample_rate` in Hz, `frame_rate` in frames per second, and `lookahead_frames` are those of the codec.
    """
    reach = lookahead_frames + ceil(REACH_S * frame_rate) if family.has_all_frames else MOST_ROWS
    record = {
        "family": family.name,
        "sample_rate": sample_rate,
        "frame_rate": frame_rate,
        "voices": list(family.voices),
        "languages": list(family.languages.names),
        "options": [*_options(family), *(["words"] if has_aligner else [])],
        "max_text_chars": family.max_text_chars,
        "max_audio_s": family.max_audio_s,
        "times_words": any(map(family.times_words, family.tasks)),
        "reads_live_text": family.text_track is not None,
        "reads_live_audio": reads_live_audio(family),
        "lookahead_frames": reach,
        "has_codes": not family.layout.latents,
        "tasks": [_task(task, family, frame_rate) for task in family.tasks],
    }
    if family.pauses_s:
        record["pauses_s"] = list(family.pauses_s)
    if family.guidance_scales:
        record["guidance_scales"] = list(family.guidance_scales)
    if family.max_voices > 1:
        record["max_voices"] = family.max_voices
    details = {name: asdict(family.voice_details[name]) for name in family.voices if name in family.voice_details}
    if details:
        record["voice_details"] = details
    family_plugin = plugin(family.name)
    if family_plugin is not None and family_plugin.signals != USUAL_SIGNALS:
        record["signals"] = asdict(family_plugin.signals)
    if family.tags:
        record["tags"] = list(family.tags)
    if phonemes := alphabets(family):
        record["phonemes"] = list(phonemes)
    record |= family.languages.profile()
    text = json.dumps(record)
    for character, why in (("'", "a quote would end the parameter"), ("\\", "a backslash would be read as an escape")):
        if character in text:
            at = text.index(character)
            raise CheckpointError(f"{family.name}: {why}: got {shown(text[max(0, at - 30) : at + 1])}")
    return text


def reads_live_audio(family: Family) -> bool:
    """Return True if the family processes audio while it arrives."""
    family_plugin = plugin(family.name)
    return family_plugin is not None and family_plugin.open_live_input is not None


def _task(task: Task, family: Family, frame_rate: float) -> dict[str, Any]:
    """Return the attributes of a task that clients need."""
    num_closing_rows = family.tail.num_closing_rows(family.layout.max_delay)
    max_speech_s = (task.sampling.audio.max_rows - num_closing_rows) // family.rows_per_frame / frame_rate
    return {
        "name": task.name,
        "needs": list(task.needs),
        "also": list(task.also),
        "speaks": task.speaks,
        "answers": task.answers,
        "has_history": task.has_history,
        "system": list(task.system),
        "max_text_rows": task.sampling.text.max_rows if task.writes else 0,
        "times_words": family.times_words(task),
        "reads_language": task.writes_down and bool(family.languages.names),
        "max_speech_s": max_speech_s if task.has_audio_segment else 0.0,
        "continues": task.continues,
    }


def _options(family: Family) -> list[str]:
    """Return the options that this family accepts but at least one other family rejects."""
    taken = {
        "depth": family.samples_codes_apart,
        "language": bool(family.languages.names),
        "repetition_penalty": family.drawing.penalized is not None,
        "schedule": family.mechanism.steps is not None,
        "text_mode": family.text_track is not None,
    }
    return sorted([*family.options, *(name for name, is_taken in taken.items() if is_taken)])


BUNDLED = bundled_repository()
CHECKPOINT = "language_model/1/checkpoint"
ENGINE = "language_model/1/engine.json"
DECODER = "acoustic_decoder"
PREPROCESSOR = "preprocessor"
ENSEMBLE = "speech"
ALIGNER = f"{DECODER}/1/aligner"
ENGINE_GPU = 0  # GPU of the language model
GPU_BATCH = 64  # windows per batch; larger batches are not faster on a GPU
WARM_UP_S = 4.0  # warm-up time of the decoder: 96 batches of a small codec take 3.3 s


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="stretto make-repository", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=argument_path, required=True, help="checkpoint made by stretto convert")
    add("--out", type=argument_path, required=True, help="directory to create")
    add(
        GIVEN,
        type=argument_path,
        metavar="FILE",
        help="JSON with engine arguments for vLLM instead of the default ones",
    )
    add(
        "--gpu",
        type=gpu_number,
        metavar="N",
        help="serve on GPUs; codec and audio tokenizer on GPU N (default: on the CPU)",
    )
    add("--codec-device", type=gpu_number, metavar="N", help="codec on GPU N; default: the GPU of --gpu")
    about = "convolutions of the codec on tensor cores: as three TF32 products (exact), or inexactly"
    add("--convolutions", choices=DecoderConfig.CONVOLUTIONS, help=f"{about}; default: float32")
    about = (
        "format of the language model's linear layers: int8 on CPUs, fp8 on GPUs of compute capability 8.9 and higher"
    )
    add(
        "--aligner", type=argument_path, metavar="FOLDER", help="CTC model for word times, from stretto convert aligner"
    )
    add("--quantize", choices=tuple(QUANTIZATIONS), help=about)
    add_profile(parser)
    add("--gpu-memory", type=gibibytes, metavar="GIB", help="memory of GPU 0; default: as reported by nvidia-smi")
    about = "let language model and codec use a GPU concurrently: the launcher runs NVIDIA's MPS daemon"
    add("--mps", action="store_true", help=about)
    about = "multiprocessors of the GPU that the codec may use, in percent; default: all"
    add("--mps-share", type=percentage, metavar="PERCENT", help=about)
    args = parser.parse_args(words)
    flags_of_gpu = {"--codec-device": args.codec_device is not None, "--mps": args.mps}
    flags_of_gpu |= {f"--quantize {args.quantize}": args.quantize in GPU_FORMATS}
    flags_of_gpu |= {"--gpu-memory": args.gpu_memory is not None, "--convolutions": bool(args.convolutions)}
    for name, is_given in flags_of_gpu.items():
        if is_given and args.gpu is None:
            parser.error(f"{name}: requires --gpu")
    if args.mps_share is not None and not args.mps:
        parser.error("--mps-share: requires --mps")
    if args.quantize and args.quantize not in GPU_FORMATS and args.gpu is not None:
        parser.error(f"--quantize {args.quantize}: expected no --gpu")
    return args


@dataclass(frozen=True)
class Placement:
    """Devices of a model repository for GPUs.

    Attributes:
        gpu: Index of the audio tokenizer's GPU.
        codec_device: Index of the codec's GPU; None to use `gpu`.
        convolutions: How the codec computes convolutions, one of `DecoderConfig.CONVOLUTIONS`.
        shares_by_mps: True if the launcher runs NVIDIA's MPS, so that processes share a GPU.
        gpu_gib: Memory of the language model's GPU, in GiB; None if it is unknown.
        mps_share: Multiprocessors that the codec may use, in percent.
    """

    gpu: int
    codec_device: int | None = None
    convolutions: str = "float32"
    shares_by_mps: bool = False
    gpu_gib: float | None = None
    mps_share: int = 100

    @property
    def decoder_gpu(self) -> int:
        return self.gpu if self.codec_device is None else self.codec_device


def gpu_needs(
    checkpoint: Path, codec: Codec, family: Family, placement: "Placement", arguments: dict[str, Any]
) -> Needs:
    """Return the memory that a server needs on the language model's GPU.

    The measurement makes `codec` unable to decode. If it cannot be measured, raise CheckpointError.
    """
    record = config_at(checkpoint)
    dtype = arguments["dtype"]
    num_seqs = arguments["max_num_seqs"]
    num_rows = arguments["max_model_len"]
    tables = latent_bytes(family, num_seqs, num_rows)
    tables += num_seqs * condition_bytes(record, family, dtype)
    weights = file_bytes(path for path in checkpoint.glob("*.safetensors") if path.stem != "codec")
    decoder = measure(codec, decoder_config(family, arguments, placement.convolutions))
    # a codec in the engine's process, and the activations of its graphs and of a batch without one
    copy = decoder.weights + 2 * decoder.first_peak if arguments.get("first_chunk") else 0
    tokenizer = checkpoint / AUDIO_TOKENIZER
    heard = decoder.weights + file_bytes(tokenizer.rglob("*.safetensors")) if tokenizer.is_dir() else None
    return Needs(
        decoder=decoder.total if placement.decoder_gpu == ENGINE_GPU else 0,
        preprocessor=heard if placement.gpu == ENGINE_GPU else None,
        weights=(weights // 2 if arguments.get("quantization") in ONLINE else weights) + copy,
        tables=tables,
        cache=longest_rows(family, num_rows, window(record), is_on_gpu=True) * bytes_per_row(record, dtype),
        tensors=decoder.tensors,
        speaker=arguments.get("speaker", {}).get("memory_mb", 0) * MIB,
    )


def decoder_config(family: Family, arguments: dict[str, Any], convolutions: str = "float32") -> DecoderConfig:
    """Return the configuration of the decoder on a GPU, which the model repository sets."""
    return DecoderConfig(
        codec=family.codec,
        device="cuda",
        convolutions=convolutions,
        max_batch=GPU_BATCH,
        max_utterances=num_utterances(arguments),
        first_frames=family.first_chunk_frames,
        steady_frames=family.steady_chunk_frames,
    )


def num_utterances(arguments: dict[str, Any]) -> int:
    """Return the decoder's maximum number of utterances.

    It exceeds the number of batch slots, because a slot is used again before its last utterance is decoded.
    """
    total: int = arguments["max_num_seqs"] + (arguments.get("max_waiting") or arguments["max_num_seqs"] // 4)
    return total


def make(
    checkpoint: Path,
    out: Path,
    engine_args: dict[str, Any],
    placement: Placement | None = None,
    aligner: Path | None = None,
    quantize: str | None = None,
    serving: str = BALANCED,
) -> None:
    """Create the model repository; raise CheckpointError if the checkpoint or the aligner cannot be served.

    Args:
        out: Directory to create; it must be missing or empty.
        placement: GPUs to use; None to use the CPU.
        aligner: Folder of the CTC model for word times, or None.
        quantize: Key of QUANTIZATIONS; None to use the weights as stored.
    """
    try:
        preprocessor = Preprocessor(checkpoint)  # opens the tokenizer, the codec and the audio encoder
    except CheckpointError as error:
        if any(checkpoint.glob("codec*")):
            raise
        raise CheckpointError(f"{checkpoint}: codec/ is missing (--codec of stretto convert): {error}") from error
    family = preprocessor.family
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(f"{checkpoint}: expected weights in *.safetensors, got none")
    if aligner is not None:
        check_config(aligner)
        read_alphabet(aligner)
    record = config_at(checkpoint)
    checkpoint_family = family_at(checkpoint)
    speaker_args = engine_args.get("speaker", {})
    EngineConfig(checkpoint, speaker=speaker_args)  # checks it
    chosen = engine_arguments(record, checkpoint_family, placement is not None, PROFILES[serving], engine_args)
    chosen |= quantization(record, quantize, chosen["dtype"])
    if checkpoint_family.mechanism.speaker is not None:
        options = placement is not None, PROFILES[serving], quantize, speaker_args
        chosen["speaker"] = speaker_arguments(speaking_folder(checkpoint), *options)
    mode = None if placement is None else placement.convolutions
    chosen = PROFILES[serving].with_first_audio(chosen, record, checkpoint_family, preprocessor.codec.spec, mode)
    tensors = 0
    if placement is not None:
        sizes = PROFILES[serving].with_chunks(family)
        needs = gpu_needs(checkpoint, preprocessor.codec, sizes, placement, chosen)
        tensors = needs.tensors
        if not chosen.keys() & MEMORY:
            chosen["reserved_mb"] = needs.reserved_mb
            if placement.gpu_gib is not None:
                needs.check(round(placement.gpu_gib * GIB))
    with fresh_directory(out) as folder:
        left_out = shutil.ignore_patterns(Path(CHECKPOINT).name, Path(ENGINE).name, Path(ALIGNER).name, "__pycache__")
        shutil.copytree(BUNDLED, folder, ignore=left_out, dirs_exist_ok=True)
        (folder / CHECKPOINT).symlink_to(checkpoint.resolve(), target_is_directory=True)
        (folder / ENGINE).write_text(json.dumps(chosen, indent=2) + "\n")
        EngineConfig.from_file(folder / ENGINE, checkpoint).speaker_config(checkpoint)
        spec = preprocessor.codec.spec
        model_profile = profile(family, spec.sample_rate, spec.frame_rate, aligner is not None, spec.lookahead_frames)
        change(folder / ENSEMBLE / "config.pbtxt", {parameter(PARAMETER): rf"\1: '{model_profile}'"})
        write_cloning_models(folder, family)
        if family.codec != family_at(BUNDLED / CHECKPOINT).codec:
            change(folder / DECODER / "config.pbtxt", {parameter("warm_up_s"): rf'\1: "{WARM_UP_S}"'})
        if chunking := PROFILES[serving].chunking(family):
            default = json.dumps(chunking)
            change(folder / PREPROCESSOR / "config.pbtxt", {parameter("chunking"): rf"\1: '{default}'"})
            usual = {name: chunking[name] for name in ("first_frames", "steady_frames")}
            change(folder / DECODER / "config.pbtxt", {parameter(name): rf'\1: "{usual[name]}"' for name in usual})
        if aligner is not None:
            (folder / ALIGNER).symlink_to(aligner.resolve(), target_is_directory=True)
            change(folder / DECODER / "config.pbtxt", {parameter("aligner"): rf'\1: "1/{Path(ALIGNER).name}"'})
            change(folder / PREPROCESSOR / "config.pbtxt", {parameter("has_aligner"): r'\1: "true"'})
        if placement is not None:
            _place(folder, placement, chosen, tensors, has_tokenizer=(checkpoint / AUDIO_TOKENIZER).is_dir())


def _place(folder: Path, placement: Placement, arguments: dict[str, Any], tensors: int, has_tokenizer: bool) -> None:
    """Set GPUs and limits of the codec and the audio tokenizer in the model configs; write the launcher's options.

    Args:
        tensors: Maximum memory of the decoder's tensors in bytes; 0 for no limit.
    """

    def on_gpu(number: int) -> dict[str, str]:
        return {r"kind: KIND_CPU": f"kind: KIND_GPU gpus: [ {number} ]"}

    limits = {
        parameter("max_batch"): rf'\1: "{GPU_BATCH}"',
        parameter("max_utterances"): rf'\1: "{num_utterances(arguments)}"',
        parameter("convolutions"): rf'\1: "{placement.convolutions}"',
        parameter("mps_share"): rf'\1: "{placement.mps_share}"',
        parameter("memory_mb"): rf'\1: "{-(-tensors // MIB)}"',
    }
    change(folder / DECODER / "config.pbtxt", on_gpu(placement.decoder_gpu) | limits)
    if has_tokenizer:  # on a CPU, the largest audio tokenizer needs most of a core in real time
        change(folder / PREPROCESSOR / "config.pbtxt", on_gpu(placement.gpu))
    if placement.shares_by_mps:
        RepositoryOptions(shares_by_mps=True).write(folder)


def parameter(name: str) -> str:
    """Return a regular expression that matches a parameter in a model config; group 1 is all text before the value."""
    return rf'(key: "{name}" value \{{ string_value): (?:"[^"]*"|\'[^\']*\')'


def change(config: Path, changes: dict[str, str]) -> None:
    """Apply substitutions to a config file; each pattern in `changes` must match exactly once."""
    text = config.read_text(encoding="utf-8")
    for pattern, new in changes.items():
        text, num_changed = re.subn(pattern, new, text)
        assert num_changed == 1, f"{config}: {pattern!r} matches {num_changed} times instead of once"
    config.write_text(text, encoding="utf-8")


# Further ensembles, for clients of other Triton servers that clone voices. They have the steps and instances of the
# main ensemble, so every limit applies to both. They differ in the names of the tensors: the preprocessor reads the
# inputs (`stretto.preprocessing.other_clients`), and `pcm` is `waveform`.

# Names of models that the published clients request (github.com/FunAudioLLM/CosyVoice, runtime/triton_trtllm), besides
# the family's own. Not `spark_tts`: of that model, the clients expect chunks that overlap by 0.1 s, at 16 kHz.
CLONING_NAMES = ("f5_tts", "cosyvoice2", "cosyvoice2_dit")
CLONING = """\
# `speech` with the tensors of clients that send the recording of a voice, its words and a text.
name: "{name}"
platform: "ensemble"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "reference_wav" data_type: TYPE_FP32 dims: [1, -1] optional: true }},
  {{ name: "reference_wav_len" data_type: TYPE_INT32 dims: [1, 1] optional: true }},
  {{ name: "reference_text" data_type: TYPE_STRING dims: [1, 1] optional: true }},
  {{ name: "target_text" data_type: TYPE_STRING dims: [1, 1] optional: true }}
]
output [ {{ name: "waveform" data_type: TYPE_FP32 dims: [-1] }} ]
ensemble_scheduling {{
  step [
    {{
      model_name: "preprocessor"
      model_version: -1
      input_map {{ key: "reference_wav" value: "reference_wav" }}
      input_map {{ key: "reference_wav_len" value: "reference_wav_len" }}
      input_map {{ key: "reference_text" value: "reference_text" }}
      input_map {{ key: "target_text" value: "target_text" }}
      output_map {{ key: "rows" value: "rows" }}
      output_map {{ key: "prompt" value: "prompt" }}
      output_map {{ key: "features" value: "features" }}
      output_map {{ key: "patches" value: "patches" }}
    }},
    {{
      model_name: "language_model"
      model_version: -1
      input_map {{ key: "rows" value: "rows" }}
      input_map {{ key: "prompt" value: "prompt" }}
      input_map {{ key: "features" value: "features" }}
      input_map {{ key: "patches" value: "patches" }}
      output_map {{ key: "codes" value: "codes" }}
      output_map {{ key: "chunk" value: "chunk" }}
    }},
    {{
      model_name: "acoustic_decoder"
      model_version: -1
      input_map {{ key: "codes" value: "codes" }}
      input_map {{ key: "chunk" value: "chunk" }}
      output_map {{ key: "pcm" value: "waveform" }}
    }}
  ]
}}
"""


def write_cloning_models(repository: Path, family: Family) -> None:
    """Add ensembles for clients of other Triton servers to a model repository, if the family clones voices."""
    if family.cloning_task is None:
        return
    for name in (family.name, *CLONING_NAMES):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(CLONING.format(name=name))


def main(words: list[str] | None = None) -> int:
    """Create the repository; return 1 if the checkpoint cannot be served."""
    args = arguments(words)
    try:
        engine_args = json_object(args.engine_args) if args.engine_args else {}
        placement = None
        if args.gpu is not None:
            num_bytes = bytes_of_gpu(ENGINE_GPU) if args.gpu_memory is None else None
            gib = args.gpu_memory if num_bytes is None else num_bytes / GIB
            share = 100 if args.mps_share is None else args.mps_share
            placement = Placement(args.gpu, args.codec_device, args.convolutions or "float32", args.mps, gib, share)
        make(args.checkpoint, args.out, engine_args, placement, args.aligner, args.quantize, args.profile)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"stretto make-repository: {error}", file=sys.stderr)
        return 1
    print((args.out / ENGINE).read_text(), end="")
    print(f"stretto serve --model-repository {args.out}")
    return 0
