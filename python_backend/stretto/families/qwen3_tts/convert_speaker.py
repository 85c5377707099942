"""Conversion of the speaker encoder in a Base release of Qwen3-TTS to a folder of the checkpoint."""

from stretto.checkpoints.published import Network
from stretto.checkpoints.tensors import Part, shapes_of
from stretto.codec.qwen3_12hz.speaker import FOLDER, PREFIX, SpeakerConfig, SpeakerEncoder
from stretto.errors import CheckpointError
from stretto.families.qwen3_tts.convert_config import Numbers

CONFIG = "speaker_encoder_config"


def speaker_encoder(numbers: Numbers, hidden_size: int) -> Network:
    """Return the network; CheckpointError if config.json describes another encoder, or one of another width."""
    record = numbers.entry(CONFIG, dict)
    try:
        config = SpeakerConfig.from_record(record)
        shapes = shapes_of(SpeakerEncoder, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"config.json: {CONFIG}: expected a speaker encoder's numbers, got {error}") from error
    if config.enc_dim != hidden_size:
        expected = f"{CONFIG}.enc_dim {hidden_size}, the talker's width"
        raise CheckpointError(f"config.json: expected {expected}, got {config.enc_dim}")
    named = {name.removeprefix("network."): shape for name, shape in shapes.items()}
    return Network(FOLDER, record, {f"{PREFIX}{name}": Part(name, shape) for name, shape in named.items()})
