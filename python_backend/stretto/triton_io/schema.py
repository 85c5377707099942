"""Tensors of the ensemble as plain data, used by the adapters and checked against the model configs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Triton tensor; -1 in `dims` is any length, `meaning` gives the unit."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """Inputs and outputs of a model in the repository."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_decoupled: bool = False


TEXT = TensorSpec("text", "STRING", (1,), "what to speak, or the question; UTF-8", optional=True)
AUDIO = TensorSpec("audio", "STRING", (-1,), "bytes of audio files, one for a turn", optional=True)
PCM_IN = TensorSpec("pcm_in", "FP32", (-1,), "mono samples in [-1, 1] at sample_rate", optional=True)
SAMPLE_RATE = TensorSpec("sample_rate", "INT32", (1,), "Hz, of pcm_in", optional=True)
MESSAGES = TensorSpec("messages", "STRING", (1,), "JSON list of turns of a dialogue", optional=True)
TASK = TensorSpec("task", "STRING", (1,), "a task of the family; default its first", optional=True)
OPTIONS = TensorSpec("options", "STRING", (1,), "JSON: sampling, limits, chunking", optional=True)
SESSION = TensorSpec("session", "STRING", (1,), "JSON: which text that is spoken `text` goes on with", optional=True)

ROWS = TensorSpec("rows", "INT32", (-1, -1), "[P, S] token ids of the prompt; none of a part of a text", optional=True)
PROMPT = TensorSpec("prompt", "UINT8", (-1,), "JSON: the rest of the prompt, or a part of a text")
FEATURES = TensorSpec("features", "FP32", (-1, -1), "[F, M] log-mel frames of all audio of the prompt", optional=True)
CODES = TensorSpec("codes", "INT32", (-1, -1), "[K, T] codes of new frames; absent in a text-only chunk", optional=True)
CHUNK = TensorSpec("chunk", "UINT8", (-1,), "JSON: the chunk, whose it is, and its flow slot")

PCM = TensorSpec("pcm", "FP32", (-1,), "mono samples in [-1, 1]; absent without samples, or with pcm16")
PCM16 = TensorSpec("pcm16", "INT16", (-1,), "mono 16-bit samples, where the options ask for them instead of pcm")
EVENT = TensorSpec("event", "STRING", (1,), "JSON: what this response adds")

REQUEST = (TEXT, AUDIO, PCM_IN, SAMPLE_RATE, MESSAGES, TASK, OPTIONS, SESSION)
RESPONSE = (PCM, PCM16, EVENT)

MODELS = {
    "speech": ModelSchema(REQUEST, RESPONSE, is_decoupled=True),
    "preprocessor": ModelSchema(REQUEST, (ROWS, PROMPT, FEATURES)),
    "language_model": ModelSchema((ROWS, PROMPT, FEATURES), (CODES, CHUNK), is_decoupled=True),
    "acoustic_decoder": ModelSchema((CODES, CHUNK), RESPONSE, is_decoupled=True),
}
