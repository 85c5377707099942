"""Memory of the decoder on a GPU with each codec of published size, for estimates before a codec is installed.

`benchmarks.decoder_memory` computes it. The module imports no torch.
"""

DECODERS_GB = {  # GB
    "audiovae": 2.97,
    "cosyvoice3": 2.93,
    "dac": 3.06,
    "encodec": 1.74,
    "espnet_dac": 1.67,
    "glm4_voice": 3.13,
    "higgs": 1.88,
    "mimi": 7.71,
    "pocket": 2.96,
    "qwen3_12hz": 5.90,
    "qwen3_omni": 6.53,
    "s3gen": 3.18,
    "tiny": 1.44,
    "vibevoice": 5.09,
    "xcodec": 2.13,
}
