"""Contents of config.json of a Qwen3-TTS release; every hyperparameter is required."""

from collections.abc import Collection, Mapping
from typing import Any

from stretto.checkpoints.release import Tokenizer
from stretto.errors import CheckpointError
from stretto.families.depth import DepthSpec
from stretto.families.qwen3_tts.family import CodecIds, Qwen3TtsVocabulary, TextIds

KINDS = ("custom_voice", "voice_design", "base")
SMALLER = "0b6"  # `tts_model_size` of the release that was not trained to follow instructions
CODEC_IDS = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
NUM_SUPPRESSED = 1024  # last ids of the talker's vocabulary; the authors' code samples only the end among them
REAL = ("rms_norm_eps", "rope_theta")


class Numbers:
    """Part of config.json. Entries must exist and be of the requested type; CheckpointError otherwise."""

    def __init__(self, record: Mapping[str, Any], path: str = ""):
        self._record, self._path = record, path

    def entry(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return the value of `name`."""
        value = self._record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = kind.__name__ if isinstance(kind, type) else "number"
            raise CheckpointError(f"config.json: expected {self._path}{name} of type {expected}, got {value!r}")
        return value

    def optional_mapping(self, name: str) -> Mapping[str, Any]:
        """Return a mapping; empty if it is missing or null, which the authors' class accepts."""
        return {} if self._record.get(name) is None else self.entry(name, dict)

    def number(self, name: str) -> Any:
        """Return a positive number."""
        value = self.entry(name, (int, float) if name in REAL else int)
        if not 0 < value < 1 << 31:
            raise CheckpointError(f"config.json: expected {self._path}{name} > 0, got {value!r}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self._record.get(name)
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json: expected {self._path}{name} true or false, got {value!r}")
        return value

    def token(self, name: str, below: int) -> int:
        """Return an id in [0, below)."""
        return self._token(name, self.entry(name, int), below)

    def tokens(self, name: str, below: int) -> dict[str, int]:
        """Return ids in [0, below) by lower-case name."""
        ids = self.entry(name, dict)
        return {key.lower(): self._token(f"{name}.{key}", value, below) for key, value in ids.items()}

    def of(self, name: str) -> "Numbers":
        """Return the nested part called `name`."""
        return Numbers(self.entry(name, dict), f"{self._path}{name}.")

    def same(self, name: str, expected: object, default: object = None) -> None:
        """Raise CheckpointError unless `name` equals `expected`.

        `default` is the value of the authors' class if missing.
        """
        found = self._record.get(name, default)
        if found != expected:
            raise CheckpointError(f"config.json: expected {self._path}{name} {expected!r}, got {found!r}")

    def _token(self, name: str, value: object, below: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
            raise CheckpointError(f"config.json: expected {self._path}{name} in [0, {below}), got {value!r}")
        return value


def vocabulary(numbers: Numbers, tokenizer: Tokenizer) -> Qwen3TtsVocabulary:
    """Return the vocabulary and voices; CheckpointError if the model is not supported."""
    numbers.same("model_type", "qwen3_tts")
    numbers.same("tokenizer_type", "qwen3_tts_tokenizer_12hz")
    kind, size = numbers.entry("tts_model_type", str), numbers.entry("tts_model_size", str)
    if kind not in KINDS:
        raise CheckpointError(f"config.json: expected tts_model_type of {', '.join(KINDS)}, got {kind!r}")
    talker = numbers.of("talker_config")
    depth = talker.of("code_predictor_config")
    for part in (talker, depth):
        part.same("hidden_act", "silu", default="silu")
        part.same("attention_bias", False, default=False)
    num_ids, num_codes = talker.number("vocab_size"), depth.number("vocab_size")
    if num_ids - NUM_SUPPRESSED != num_codes:
        expected = f"{num_codes} codes and {NUM_SUPPRESSED} markers"
        raise CheckpointError(f"config.json: expected talker_config.vocab_size of {expected}, got {num_ids}")
    num_codebooks = talker.number("num_code_groups")
    if num_codebooks < 3:
        raise CheckpointError(f"config.json: expected talker_config.num_code_groups >= 3, got {num_codebooks}")
    depth.same("num_code_groups", num_codebooks)
    check_positions(talker)
    languages = talker.tokens("codec_language_id", num_ids)
    return Qwen3TtsVocabulary(
        kind=kind,
        takes_instructions=kind == "voice_design" or (kind == "custom_voice" and size != SMALLER),
        num_text_ids=talker.number("text_vocab_size"),
        num_codec_ids=num_ids,
        num_codebooks=num_codebooks,
        codebook_size=num_codes,
        text=text_ids(numbers, tokenizer, talker.number("text_vocab_size")),
        codec=CodecIds(
            **{name: talker.token(f"codec_{name}_id", num_ids) for name in CODEC_IDS},
            eos=talker.token("codec_eos_token_id", num_ids),
        ),
        languages=languages,
        speakers=talker.tokens("spk_id", num_ids),
        dialects=_dialects(talker, languages),
        max_model_len=talker.number("max_position_embeddings"),
        depth=depth_spec(talker, depth),
    )


def _dialects(talker: Numbers, languages: Collection[str]) -> dict[str, str]:
    """Return the dialect, which is one of the languages, of each speaker that has one."""
    entries = talker.optional_mapping("spk_is_dialect").items()
    dialects = {name.lower(): dialect for name, dialect in entries if dialect}
    for name, dialect in dialects.items():
        if not isinstance(dialect, str) or dialect not in languages:
            got = f"{name!r}: {dialect!r}"
            raise CheckpointError(f"config.json: expected languages in talker_config.spk_is_dialect, got {got}")
    return dialects


def check_positions(talker: Numbers) -> None:
    """Raise CheckpointError unless the sections of the rotary embedding fill half a head.

    The three positions of a row are equal, so the sections act as one.
    """
    sections = talker.of("rope_scaling").entry("mrope_section", list)
    if not all(isinstance(each, int) for each in sections) or 2 * sum(sections) != talker.number("head_dim"):
        raise CheckpointError(f"config.json: expected mrope_section of half a head in all, got {sections!r}")


def text_ids(numbers: Numbers, tokenizer: Tokenizer, num_ids: int) -> TextIds:
    """Return the ids of words and markers in every prompt; CheckpointError if the tokenizer does not fit."""
    ids = {spelling: token_id for token_id, spelling in tokenizer.tokens.items()}
    words = {"assistant": "assistant", "user": "user", "newline": "Ċ"}
    missing = [word for word in words.values() if word not in ids]
    if missing or tokenizer.size > num_ids:
        got = f"{tokenizer.size} tokens" + (f", without {', '.join(missing)}" if missing else "")
        expected = f"at most {num_ids} tokens with {', '.join(words.values())}"
        raise CheckpointError(f"{tokenizer.folder}: expected a tokenizer of {expected}, got {got}")
    named = {name: numbers.token(f"{name}_token_id", num_ids) for name in ("im_start", "im_end")}
    named |= {name: numbers.token(f"tts_{name}_token_id", num_ids) for name in ("pad", "bos", "eos")}
    return TextIds(**named, **{name: ids[word] for name, word in words.items()})


def depth_spec(talker: Numbers, depth: Numbers) -> DepthSpec:
    """Return the hyperparameters of the depth transformer."""
    return DepthSpec(
        hidden=depth.number("hidden_size"),
        intermediate=depth.number("intermediate_size"),
        num_layers=depth.number("num_hidden_layers"),
        num_heads=depth.number("num_attention_heads"),
        num_kv_heads=depth.number("num_key_value_heads"),
        head_dim=depth.number("head_dim"),
        eps=depth.number("rms_norm_eps"),
        rope={"rope_type": "default", "rope_theta": depth.number("rope_theta")},
        projection=None if depth.number("hidden_size") == talker.number("hidden_size") else "biased",
        has_head_norms=True,
    )
