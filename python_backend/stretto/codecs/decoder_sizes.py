"""Memory and operations of the decoder with each codec of published size, for estimates before a codec is installed.

`benchmarks.decoder_memory` computes the memory on a GPU, and `benchmarks.codec_operations` counts the operations. The
module imports no torch.
"""

DECODERS_GB = {  # GB
    "audiovae": 8.66,
    "cosyvoice3": 8.30,
    "dac": 8.29,
    "espnet_dac": 7.07,
    "fish_s2": 14.80,
    "glm4_voice": 8.62,
    "higgs": 7.23,
    "mimi": 11.55,
    "moss": 24.02,
    "pocket": 8.36,
    "qwen3_12hz": 11.13,
    "qwen3_omni": 11.28,
    "s3gen": 8.55,
    "tiny": 6.95,
    "vibevoice": 10.46,
    "xcodec": 7.44,
}
STATES_BYTES = {"moss": 169_435_136}  # of an utterance, for codecs whose states limit the number of batch slots
# Maximum size of what a codec keeps of voices on a CPU. CosyVoice 3 keeps 180 MB for a second, except for the last one.
VOICES_BYTES = {"cosyvoice3": 2 << 30}
# Operations for a second of audio, in 10⁹, in a reply of 4 s. Codecs for recorded voices read a voice of 3 s.
GFLOP_PER_S = {
    "audiovae": 18.1,
    "cosyvoice3": 1167.9,
    "dac": 144.6,
    "espnet_dac": 6.2,
    "fish_s2": 145.6,
    "glm4_voice": 308.5,
    "higgs": 21.8,
    "mimi": 5.5,
    "moss": 51.2,
    "pocket": 6.9,
    "qwen3_12hz": 62.1,
    "qwen3_omni": 69.1,
    "s3gen": 337.8,
    "s3gen_meanflow": 68.1,
    "tiny": 0.5,
    "vibevoice": 27.3,
    "xcodec": 41.6,
}
WHOLE = frozenset({"s3gen", "s3gen_meanflow"})  # codecs that decode a reply after its last code
