"""Conversion of the networks that encode recordings for IndexTTS-2: files of four releases to `RecordingEncoder`.

gpt.pth                                       conformers, perceivers and layers of the emotion
feat1.pt, feat2.pt                            styles and vectors of emotions
wav2vec2bert_stats.pt                         mean and variance of hidden states
hf_cache/w2v-bert-2.0/model.safetensors       w2v-BERT 2.0, of which 17 of 24 layers are written
hf_cache/semantic_codec_model.safetensors     encoder and codebook of MaskGCT's semantic codec
hf_cache/campplus_cn_common.bin               CAM++
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stretto.family.conversion import Network
from stretto.untrusted_files import released_file
from stretto.weights.loading import Plan, open_tensors
from stretto_indextts2.convert_codec import QUANTIZER, open_semantic_codec
from stretto_indextts2.release_files import network, pickled_tensor, pickled_tensors, placed, plain_shapes, planned
from stretto_indextts2.voices import EMOTIONS, FOLDER, RecordingEncoder, emotion_sizes

STATISTICS_FILE = "wav2vec2bert_stats.pt"
STYLES_FILE = "feat1.pt"
VECTORS_FILE = "feat2.pt"
SPEECH_FILE = "hf_cache/w2v-bert-2.0/model.safetensors"
SPEAKER_FILE = "hf_cache/campplus_cn_common.bin"


def hearing_network(folder: Path, gpt: Mapping[str, Tensor], emotions: Sequence[int]) -> Network:
    """Return the networks to be written.

    Args:
        folder: Folder of the release.
        gpt: Tensors of `gpt.pth` by published name.
        emotions: Number of vectors of each emotion, `emo_num` of config.yaml.

    Raises:
        CheckpointError: If a file, value or tensor is not as expected; the message describes the difference.
    """
    sizes = emotion_sizes(emotions, "config.yaml")
    semantic = open_semantic_codec(folder)
    tensors = dict(gpt)
    tensors |= placed(pickled_tensors(released_file(folder, STATISTICS_FILE)), "speech.")
    tensors |= placed(open_tensors(released_file(folder, SPEECH_FILE)), "speech.model.")
    tensors |= placed(semantic, "semantic.encoder.", "encoder.")
    tensors |= placed(semantic, "semantic.", QUANTIZER)
    tensors |= placed(pickled_tensors(released_file(folder, SPEAKER_FILE)), "speaker_encoder.")
    tensors["emotion_styles"] = pickled_tensor(released_file(folder, STYLES_FILE))
    tensors["emotion_vectors"] = pickled_tensor(released_file(folder, VECTORS_FILE))
    with torch.device("meta"):
        encoder = RecordingEncoder(plain_shapes(tensors), sizes)
    plan: Plan = {}
    for name, tensor in encoder.state_dict().items():
        plan |= planned(name, tuple(tensor.shape), tensors)
    return network(FOLDER, {"model_type": "indextts2_hearing", EMOTIONS: list(sizes)}, plan, tensors)
