"""Conversion of the networks that encode recordings: files of four releases become a `RecordingEncoder`.

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
from stretto.weights.loading import open_tensors
from stretto_indextts2.convert_codec import QUANTIZER, open_semantic_codec
from stretto_indextts2.release_files import pickled_tensor, plain_weights, plan_of, renamed
from stretto_indextts2.voices import FOLDER, SIZES, RecordingEncoder, emotion_sizes

STATISTICS_FILE = "wav2vec2bert_stats.pt"
STYLES_FILE = "feat1.pt"
VECTORS_FILE = "feat2.pt"
SPEECH_FILE = "hf_cache/w2v-bert-2.0/model.safetensors"
SPEAKER_FILE = "hf_cache/campplus_cn_common.bin"


def hearing_network(folder: Path, gpt: Mapping[str, Tensor], sizes: Sequence[int]) -> Network:
    """Return the networks to be written.

    Args:
        gpt: Tensors of `gpt.pth` by published name.
        sizes: Number of vectors of each emotion, `emo_num` of config.yaml.
    """
    sizes = emotion_sizes(sizes, "config.yaml: emo_num")
    semantic = open_semantic_codec(folder)
    published = dict(gpt)
    published |= renamed(open_tensors(released_file(folder, STATISTICS_FILE)), "", "speech.")
    published |= renamed(open_tensors(released_file(folder, SPEECH_FILE)), "", "speech.model.")
    published |= renamed(semantic, "encoder.", "semantic.encoder.") | renamed(semantic, QUANTIZER, "semantic.")
    published |= renamed(open_tensors(released_file(folder, SPEAKER_FILE)), "", "speaker_encoder.")
    published["emotion_styles"] = pickled_tensor(released_file(folder, STYLES_FILE))
    published["emotion_vectors"] = pickled_tensor(released_file(folder, VECTORS_FILE))
    tensors = plain_weights(published, folder)
    with torch.device("meta"):
        encoder = RecordingEncoder({name: tensor.shape for name, tensor in tensors.items()}, sizes)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    record = {"model_type": "indextts2_hearing", SIZES: list(sizes)}
    return Network(FOLDER, record, plan_of(shapes, tensors), tensors)
