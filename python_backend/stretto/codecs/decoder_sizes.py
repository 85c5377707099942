"""Memory of the decoder on a GPU with each codec of published size, for estimates before a codec is installed.

`benchmarks.decoder_memory` computes it. The module imports no torch.
"""

DECODERS_GB = {  # GB
    "audiovae": 8.34,
    "cosyvoice3": 8.30,
    "dac": 8.43,
    "encodec": 7.10,
    "espnet_dac": 7.04,
    "fish_s2": 15.41,
    "glm4_voice": 8.50,
    "higgs": 7.25,
    "mimi": 13.08,
    "moss": 26.15,
    "pocket": 8.33,
    "qwen3_12hz": 11.27,
    "qwen3_omni": 11.90,
    "s3gen": 8.55,
    "tiny": 6.93,
    "vibevoice": 10.46,
    "xcodec": 7.50,
}
STATES_BYTES = {"moss": 169_435_136}  # of an utterance, for codecs whose states limit the number of batch slots
