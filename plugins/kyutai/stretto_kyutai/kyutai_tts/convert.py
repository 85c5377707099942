"""Conversion of Kyutai's text-to-speech releases: published names and shapes, and the Mimi file.

https://huggingface.co/kyutai/tts-0.75b-en-public: a recording of the voice precedes the reply; CFG pairs guide it.
https://huggingface.co/kyutai/tts-1.6b-en_fr: vectors of voices and of the guidance scale condition the reply, and a
second text stream shows the word after the next. In both, the folder `voices/` of the release has the named voices.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Release, in_lower_case, integer
from stretto.untrusted_files import check_value, entry, released_file, released_folder
from stretto.weights.loading import Part
from stretto_kyutai.kyutai_stt.convert import SHARED_EXPECTED, check_config, flat
from stretto_kyutai.kyutai_stt.convert import located as located
from stretto_kyutai.kyutai_stt.family import FRAME_RATE, PAD
from stretto_kyutai.kyutai_tts.family import MAX_AHEAD, MAX_DELAY, NAME, TtsVocabulary
from stretto_kyutai.kyutai_tts.prompt import SAMPLE_RATE, SPEAKERS, VOICES, samples_at, vectors_at
from stretto_kyutai.moshi import convert as moshi

IS_BARE = moshi.IS_BARE
TOKENIZER_KEY = moshi.TOKENIZER_KEY
EMBEDDINGS = moshi.EMBEDDINGS
MARKS = moshi.MARKS
AUTHORS_FORMAT = "Kyutai's format, such as kyutai/tts-1.6b-en_fr"
MAX_VOICES = 1024
MAX_CONDITIONS = 64
MAX_WIDTH = 1 << 14
MAX_SCALE = 100
VOICE = re.compile(r"(?! )[A-Za-z0-9_.+()/ -]{1,128}(?<! )")
# Default voices of the authors' server and of their script.
DEFAULTS = ("unmute-prod-website/default_voice.wav", "expresso/ex03-ex01_happy_001_channel1_334s.wav")
# conditioners, in addition to SPEAKERS
SCALE = "cfg"
CONTROL = "control"
ALWAYS = "ok"  # value of CONTROL that every reply has
ADDED = (SCALE, CONTROL)  # conditioners whose vectors are added to all rows
NUMBER = re.compile(r"[0-9]{1,3}\.[0-9]")
CONDITIONER = "condition_provider.conditioners"
EMPTY: dict[str, list[str]] = {"sum": [], "cross": [], "prepend": []}
EXPECTED: dict[str, tuple[Any, ...]] = {  # supported values of config.json
    "model_type": ("tts",),
    **SHARED_EXPECTED,
    **moshi.DEPTH_EXPECTED,
    "fuser": (None, {}, EMPTY, {"sum": [], "cross": []}),
}
# Fields of EXPECTED that are checked elsewhere instead: in all releases, and only in those with conditions.
FREE = ("demux_second_stream", moshi.RANK)
CONDITIONS = ("cross_attention", "conditioners", "fuser")
FUSED = {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 1, "cross": [SPEAKERS]}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with Mimi from the release's own file."""
    config = contents.config
    if not config:
        raise CheckpointError("--config: expected the release's config.json, got none")
    scales = guidance_scales(config)
    free = (*FREE, *CONDITIONS) if scales else FREE
    check_config(config, {name: allowed for name, allowed in EXPECTED.items() if name not in free})
    voices = vectors_of_voices(release.folder, config) if scales else recordings(release.folder)
    vocab = vocabulary(config, tuple(voices))
    if scales:
        vocab = replace(vocab, guidance_scales=scales, voice_shape=shape_of(voices, width_of(config, SPEAKERS)))
    copies = {f"{VOICES}/{name}.{'safetensors' if scales else 'wav'}": path for name, path in voices.items()}
    converted = moshi.converted(
        release, contents, config, vocab, NAME, repeated=(PAD,), num_steps=integer(config, "n_q")
    )
    unused = (f"{moshi.DEPTH_TEXT}.low_rank.weight",) if vocab.ahead and config.get(moshi.RANK) else ()
    converted = replace(converted, copies=copies, dropped=(*converted.dropped, *unused))
    return with_conditions(converted, config, vocab, contents.tensors) if scales else converted


def recordings(root: Path) -> dict[str, Path]:
    """Return the recordings of a release's voices by name in lower case."""
    files = by_name(root, [(path.stem, path) for path in sorted(released_folder(root, VOICES).glob("*.wav"))])
    for path in files.values():
        samples_at(path, SAMPLE_RATE)
    return files


def vectors_of_voices(root: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a release's voices, by the authors' name in lower case, with the default voice first.

    The name of a voice is the path of its file in the folder, without the suffix that identifies the model.
    """
    suffix = f".{entry(config, 'model_id.sig')}@{entry(config, 'model_id.epoch')}.safetensors"
    folder = released_folder(root, VOICES)
    for path in folder.rglob("*"):
        if path.is_dir():
            released_folder(root, path.relative_to(root).as_posix())
    paths = sorted(folder.rglob("*.safetensors"))
    named = [(path.relative_to(folder).as_posix().removesuffix(suffix), path) for path in paths]
    files = by_name(root, [(name, path) for name, path in named if path.name.endswith(suffix)])
    if not files:
        expected = f"files NAME{suffix} of voices, such as those of kyutai/tts-voices"
        raise CheckpointError(f"{folder}: expected {expected}, got none")
    return {name: files[name] for name in (*filter(files.get, DEFAULTS), *sorted(files.keys() - {*DEFAULTS}))}


def by_name(root: Path, files: list[tuple[str, Path]]) -> dict[str, Path]:
    """Return the files of voices by name in lower case; raise CheckpointError if a request cannot name one."""
    folder = root / VOICES
    if len(files) > MAX_VOICES:
        raise CheckpointError(f"{folder}: expected at most {MAX_VOICES} voices, got {len(files)}")
    odd = next((name for name, _ in files if not VOICE.fullmatch(name)), None)
    if odd is not None:
        expected = "names of at most 128 characters out of A-Z a-z 0-9 _ . + ( ) / - and inner spaces"
        raise CheckpointError(f"{folder}: expected {expected}, got {shown(odd)}")
    released = {name: released_file(root, path.relative_to(root).as_posix()) for name, path in files}
    return in_lower_case(released, f"{folder}")


def shape_of(voices: Mapping[str, Path], width: int) -> tuple[int, int]:
    """Return the number of vectors of each voice, and their width; raise CheckpointError if the voices differ."""
    num_vectors = 0
    for path in voices.values():
        size = len(vectors_at(path, width))
        if num_vectors not in (0, size):
            raise CheckpointError(f"{path}: expected {num_vectors} vectors, as the other voices have, got {size}")
        num_vectors = size
    return num_vectors, width


def guidance_scales(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Check a release's conditions, and return its guidance scales; empty if it has no conditions."""
    conditioners = config.get("conditioners")
    if not conditioners:
        return ()
    names = {SPEAKERS, SCALE, CONTROL}
    if not isinstance(conditioners, dict) or {*conditioners} != names:
        expected = f"none, or {', '.join(sorted(names))}"
        raise CheckpointError(f"config.json: conditioners: expected {expected}, got {shown(conditioners)}")
    kinds: dict[str, Any] = {f"conditioners.{name}.type": "lut" for name in ADDED}
    kinds |= {f"conditioners.{SPEAKERS}.type": "tensor"}
    kinds |= {f"conditioners.{name}.lut.tokenizer": "noop" for name in (SCALE, CONTROL)}
    kinds |= {f"fuser.{name}": value for name, value in FUSED.items()} | {"cross_attention": True}
    for field, wanted in kinds.items():
        check_value(field, entry(config, field), wanted)
    for method, members in (("sum", [*ADDED]), ("prepend", [])):
        fused = config["fuser"].get(method, [])
        if not isinstance(fused, list) or sorted(map(str, fused)) != members:
            raise CheckpointError(f"config.json: fuser.{method}: expected {members}, got {shown(fused)}")
    values_of(config, CONTROL)
    texts = values_of(config, SCALE)
    scales = tuple(float(text) if NUMBER.fullmatch(text) else -1.0 for text in texts)
    if not all(0 <= scale <= MAX_SCALE for scale in scales) or len({*scales}) < len(scales):
        expected = f"different numbers from 0 to {MAX_SCALE} with one decimal"
        raise CheckpointError(f"config.json: conditioners.cfg.lut.possible_values: expected {expected}, got {texts}")
    return scales


def values_of(config: Mapping[str, Any], conditioner: str) -> list[str]:
    """Return the values for which a conditioner's table has vectors."""
    field = f"conditioners.{conditioner}.lut"
    values = entry(config, f"{field}.possible_values")
    most = entry(config, f"{field}.n_bins")
    if type(most) is not int or not 1 <= most <= MAX_CONDITIONS:
        raise CheckpointError(f"config.json: {field}.n_bins: expected 1 to {MAX_CONDITIONS}, got {shown(most)}")
    is_list = isinstance(values, list) and all(isinstance(text, str) for text in values)
    if not is_list or not 1 <= len(values) <= most or (conditioner == CONTROL and ALWAYS not in values):
        expected = f"1 to {most} texts" + (f", including {ALWAYS!r}" if conditioner == CONTROL else "")
        raise CheckpointError(f"config.json: {field}.possible_values: expected {expected}, got {shown(values)}")
    return values


def width_of(config: Mapping[str, Any], conditioner: str) -> int:
    """Return the width of a conditioner's vectors before their projection."""
    field = f"conditioners.{conditioner}.{'tensor' if conditioner == SPEAKERS else 'lut'}.dim"
    width = entry(config, field)
    if type(width) is not int or not 1 <= width <= MAX_WIDTH:
        raise CheckpointError(f"config.json: {field}: expected an integer in [1, {MAX_WIDTH}], got {shown(width)}")
    return width


def with_conditions(
    converted: Converted, config: Mapping[str, Any], vocab: TtsVocabulary, tensors: Mapping[str, Tensor]
) -> Converted:
    """Add the tensors of conditions and of cross-attention to the conversion of a release."""
    width = integer(config, "dim")
    voices = f"{CONDITIONER}.{SPEAKERS}"
    scales = f"{CONDITIONER}.{SCALE}"
    sizes = {name: (entry(config, f"conditioners.{name}.lut.n_bins") + 1, width_of(config, name)) for name in ADDED}
    embeddings = f"{CONDITIONER}.{CONTROL}.embed.weight"
    factors = {f"{CONDITIONER}.{name}.output_proj.weight": (width, sizes[name][1]) for name in ADDED}
    always = values_of(config, CONTROL).index(ALWAYS)

    def added(stored: Tensor, control: Tensor, *factors: Tensor) -> Tensor:
        """Return the vectors of the guidance scales, then the vector that all replies have, [n + 1, H]."""
        rows = (stored[: vocab.control_id], control[always : always + 1])
        return torch.cat([row.float() @ factor.float().T for row, factor in zip(rows, factors, strict=True)])

    parts = {
        f"{scales}.embed.weight": Part(
            "conditions.sum.weight",
            sizes[SCALE],
            added,
            torch.float32,
            others={embeddings: sizes[CONTROL], **factors},
        ),
        f"{voices}.output_proj.weight": Part(
            "conditions.project.weight", (width, width_of(config, SPEAKERS)), dtype=torch.float32
        ),
        f"{voices}.learnt_padding": Part("conditions.absent", (1, 1, width), flat, torch.float32),
    }
    for layer in range(integer(config, "num_layers")):
        stored = f"transformer.layers.{layer}"
        ours = f"model.layers.{layer}"
        fused = f"{stored}.cross_attention.in_proj_weight"
        output = f"{stored}.cross_attention.out_proj.weight"
        newer = f"{stored}.cross_attention.in_projs.0.weight", f"{stored}.cross_attention.out_projs.0.weight"
        fused, output = (new if new in tensors else old for new, old in zip(newer, (fused, output), strict=True))
        keys_and_values = Part(f"{ours}.cross_attn.kv_proj.weight", (3 * width, width), lambda weight: weight[width:])
        parts |= {
            fused: Part(
                f"{ours}.cross_attn.query_proj.weight",
                keys_and_values.stored,
                lambda weight: weight[:width],
                also=(keys_and_values,),
            ),
            output: Part(f"{ours}.cross_attn.o_proj.weight", (width, width)),
            f"{stored}.norm_cross.weight": Part(f"{ours}.cross_norm.weight", (width,)),
            f"{stored}.norm_cross.bias": Part(f"{ours}.cross_norm.bias", (width,)),
        }
    unused = tuple(f"{CONDITIONER}.{name}.learnt_padding" for name in ADDED)  # for requests without these conditions
    return replace(converted, plan={**converted.plan, **parts}, dropped=(*converted.dropped, *unused))


def vocabulary(config: Mapping[str, Any], voices: tuple[str, ...] = ()) -> TtsVocabulary:
    """Return the vocabulary of a release.

    A release may have tables for `n_q` codebooks, of which only the first `dep_q` are to be generated.
    """
    num_codebooks = integer(config, "dep_q")
    num_tables = integer(config, "n_q")
    delays = config.get("delays")
    if num_codebooks > num_tables:
        raise CheckpointError(f"config.json: dep_q: expected at most {num_tables}, as n_q, got {num_codebooks}")
    of_codebooks = delays[1:] if isinstance(delays, list) and delays[:1] == [0] else []
    is_valid = of_codebooks[:1] == [0] and all(type(delay) is int and 0 <= delay <= MAX_DELAY for delay in of_codebooks)
    if not is_valid or len(of_codebooks) != num_tables or not {*of_codebooks} <= {*of_codebooks[:num_codebooks]}:
        condition = f", and after the first {num_codebooks} (dep_q) only delays that these have"
        expected = f"0, then {num_tables} delays from 0 to {MAX_DELAY}, the first of them 0{condition}"
        raise CheckpointError(f"config.json: delays: expected {expected}, got {shown(delays)}")
    settings = entry(config, "tts_config")
    if (multistream := settings.get("multistream")) not in (False, None):
        raise CheckpointError(f"config.json: tts_config.multistream: expected False, got {shown(multistream)}")
    delay_s = entry(settings, "audio_delay")
    if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s * FRAME_RATE <= MAX_DELAY:
        expected = f"seconds in [0, {MAX_DELAY / FRAME_RATE:g}]"
        raise CheckpointError(f"config.json: tts_config.audio_delay: expected {expected}, got {shown(delay_s)}")
    num_text_ids = integer(config, "text_card")
    num_sampled = config.get("text_card_out")
    if num_sampled is not None and not PAD < integer(config, "text_card_out") <= num_text_ids:
        expected = f"an integer in [{PAD + 1}, {num_text_ids}]"
        raise CheckpointError(f"config.json: text_card_out: expected {expected}, got {num_sampled}")
    return TtsVocabulary(
        num_text_ids=num_text_ids,
        num_codebooks=num_codebooks,
        codebook_size=integer(config, "card"),
        delays=tuple(of_codebooks[:num_codebooks]),
        delay_rows=int(delay_s * FRAME_RATE),
        depth=moshi.depth_spec(config, moshi.schedule(config, num_tables)[:num_codebooks]),
        voices=voices,
        num_sampled=num_sampled or 0,
        ahead=words_ahead(config),
    )


def words_ahead(config: Mapping[str, Any]) -> int:
    """Return the number of words by which the second text stream is ahead; 0 if a release has no such stream."""
    is_second = config.get("demux_second_stream")
    ahead = entry(config, "tts_config").get("second_stream_ahead")
    if is_second not in (True, False, None):
        raise CheckpointError(f"config.json: demux_second_stream: expected True or False, got {shown(is_second)}")
    lowest, highest = (1, MAX_AHEAD) if is_second else (0, 0)
    if type(ahead or 0) is not int or not lowest <= (ahead or 0) <= highest:
        expected = f"an integer in [1, {MAX_AHEAD}] with" if is_second else "0 without"
        raise CheckpointError(
            f"config.json: tts_config.second_stream_ahead: expected {expected} demux_second_stream, got {shown(ahead)}"
        )
    return ahead or 0
