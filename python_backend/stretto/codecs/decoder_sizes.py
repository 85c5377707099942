"""Memory of the decoder on a GPU with each codec of published size, for estimates before a codec is installed.

`benchmarks.decoder_memory` computes it. The module imports no torch.
"""

DECODERS_GB = {  # GB
    "audiovae": 6.73,
    "cosyvoice3": 6.69,
    "dac": 6.82,
    "encodec": 5.49,
    "espnet_dac": 5.43,
    "glm4_voice": 6.89,
    "higgs": 5.64,
    "mimi": 11.47,
    "pocket": 6.72,
    "qwen3_12hz": 9.66,
    "qwen3_omni": 10.29,
    "s3gen": 6.94,
    "tiny": 5.20,
    "vibevoice": 8.85,
    "xcodec": 5.89,
}
