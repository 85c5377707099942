"""Conversion of Kyutai's releases of text-to-speech models: names and shapes as published, and their file of Mimi.

https://huggingface.co/kyutai/tts-0.75b-en-public: recordings of voices precede the reply, and CFG pairs guide it. A
folder `voices/` in the release may contain recordings, which become named voices. The 1.6B model, whose voices are
attended to, is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError, shown
from stretto.families.conversion import Contents, Converted, Release
from stretto.families.kyutai_stt.convert import SHARED_EXPECTED, check_config, integer
from stretto.families.kyutai_stt.convert import trained_dtype as trained_dtype
from stretto.families.kyutai_stt.family import FRAME_RATE, PAD
from stretto.families.kyutai_tts.family import MAX_DELAY, NAME, TtsVocabulary
from stretto.families.kyutai_tts.prompt import VOICES, samples_at
from stretto.families.moshi import convert as moshi
from stretto.untrusted_files import entry

IS_BARE, TOKENIZER_KEY, EMBEDDINGS, MARKS = moshi.IS_BARE, moshi.TOKENIZER_KEY, moshi.EMBEDDINGS, moshi.MARKS
SAMPLE_RATE = 24_000
MAX_VOICES = 256
EMPTY: dict[str, list[str]] = {"sum": [], "cross": [], "prepend": []}
EXPECTED: dict[str, tuple[Any, ...]] = {  # supported values of config.json
    "model_type": ("tts",),
    **SHARED_EXPECTED,
    **moshi.DEPTH_EXPECTED,
    "fuser": (None, {}, EMPTY, {"sum": [], "cross": []}),
}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with Mimi from the release's own file."""
    config = contents.config
    if not config:
        raise CheckpointError("--config: expected the release's config.json, got none")
    check_config(config, EXPECTED)
    folder = release.model if release.model.is_dir() else release.model.parent
    voices = recordings(folder / VOICES)
    known = vocabulary(config, tuple(voices))
    copies = {f"{VOICES}/{name}.wav": path for name, path in voices.items()}
    return replace(moshi.converted(release, contents, config, known, NAME, repeated=(PAD,)), copies=copies)


def recordings(folder: Path) -> dict[str, Path]:
    """Return the recordings of voices in a release, by name in lower case; raise CheckpointError if one is unusable."""
    paths = sorted(folder.glob("*.wav")) if folder.is_dir() else []
    if len(paths) > MAX_VOICES:
        raise CheckpointError(f"{folder}: expected at most {MAX_VOICES} recordings, got {len(paths)}")
    for path in paths:
        samples_at(path, SAMPLE_RATE)
    found = {path.stem.lower(): path for path in paths}
    if len(found) < len(paths):
        raise CheckpointError(f"{folder}: expected names that differ in more than their case, got {len(paths)} files")
    return found


def vocabulary(config: Mapping[str, Any], voices: tuple[str, ...] = ()) -> TtsVocabulary:
    """Return the vocabulary of a release."""
    num_codebooks, delays = integer(config, "dep_q"), config.get("delays")
    if config.get("n_q") != num_codebooks:
        raise CheckpointError(f"config.json: n_q: expected {num_codebooks}, as dep_q, got {shown(config.get('n_q'))}")
    own = delays[1:] if isinstance(delays, list) and delays[:1] == [0] else []
    is_valid = own[:1] == [0] and all(type(each) is int and 0 <= each <= MAX_DELAY for each in own)
    if not is_valid or len(own) != num_codebooks:
        expected = f"0, then {num_codebooks} delays from 0 to {MAX_DELAY}, the first of them 0"
        raise CheckpointError(f"config.json: delays: expected {expected}, got {shown(delays)}")
    settings = entry(config, "tts_config")
    for name in ("second_stream_ahead", "multistream"):
        if settings.get(name) not in (0, None):
            raise CheckpointError(f"config.json: tts_config.{name}: expected 0, got {shown(settings[name])}")
    delay_s = entry(settings, "audio_delay")
    if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s * FRAME_RATE <= MAX_DELAY:
        expected = f"seconds in [0, {MAX_DELAY / FRAME_RATE:g}]"
        raise CheckpointError(f"config.json: tts_config.audio_delay: expected {expected}, got {shown(delay_s)}")
    return TtsVocabulary(
        num_text_ids=integer(config, "text_card"),
        num_codebooks=num_codebooks,
        codebook_size=integer(config, "card"),
        delays=tuple(own),
        delay_rows=int(delay_s * FRAME_RATE),
        depth=moshi.depth_spec(config, num_codebooks),
        voices=voices,
    )
