"""The code2wav of Qwen3-Omni with random weights, for the tests and measurements of all codecs."""

from lab.releases.codec_cases import CodecCase
from plugins.qwen3_omni.lab.random_code2wav import code2wav_record, write_code2wav
from stretto_qwen3_omni.code2wav import Code2Wav, read_shape

PUBLISHED = {
    "codebook_size": 2048,
    "decoder_dim": 1536,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}


def code2wav(is_narrow: bool) -> Code2Wav:
    """Return the codec."""
    return Code2Wav(read_shape(code2wav_record() | ({} if is_narrow else PUBLISHED)))


CASES = {"qwen3_omni": CodecCase(code2wav, write_code2wav, (2, 12))}
