"""Small vocabularies with the structure of the published families and few ids."""

from dataclasses import replace
from importlib.metadata import entry_points

import lab  # noqa: F401  (registers the families)
from stretto.families.bagpiper.family import BagpiperVocabulary, bagpiper
from stretto.families.csm.family import DEPTH, CsmVocabulary, csm
from stretto.families.opuslm.family import OpusVocabulary, opuslm, opuslm_dialogue
from stretto.families.qwen3_tts.family import CodecIds, Qwen3TtsVocabulary, TextIds, qwen3_tts
from stretto.family.base import DepthSpec, Family
from stretto.family.input_tracks import TextTrack
from stretto.family.plugin import plugin

# 256 special tokens, 300 of text, eight streams of a pad and 16 codes each.
SMALL_BAGPIPER = BagpiperVocabulary(vocab_size=256 + 300 + 8 * 17, text=(256, 556), first_audio=556, codebook_size=16)
# 256 special tokens, 20 semantic ones, eight codebooks of 12 codes, 60 of text.
SMALL_OPUSLM = OpusVocabulary(vocab_size=432, text=(372, 432), ssl=(256, 276), codec=276, codebook_size=12)

# 60 ids of text, six codebooks of 8 codes each; two zeros end a reply, so that some do so by chance.
ROPE = {**DEPTH.rope, "low_freq_factor": 0.1, "high_freq_factor": 0.5, "original_max_position_embeddings": 4}
SMALL_DEPTH = DepthSpec(24, 40, 2, num_heads=2, num_kv_heads=1, head_dim=16, eps=1e-5, rope=ROPE)
SMALL_CSM = CsmVocabulary(60, 6, 8, 56, 57, 58, 59, num_end_codebooks=2, max_model_len=512, depth=SMALL_DEPTH)

# 60 ids of text, then 8 codes and 32 markers, three more codebooks.
SMALL_QWEN3_TTS = Qwen3TtsVocabulary(
    num_text_ids=60,
    num_codec_ids=40,
    num_codebooks=4,
    codebook_size=8,
    text=TextIds(50, 51, 52, 53, 54, 55, 56, 57),
    codec=CodecIds(10, 11, 12, 13, 14, 15, 16),
    languages={"chinese": 20, "english": 21, "sichuan_dialect": 22},
    speakers={"ryan": 30, "eric": 31},
    dialects={"eric": "sichuan_dialect"},
    max_model_len=512,
    depth=replace(SMALL_DEPTH, projection="biased", has_head_norms=True),
)

CSM = csm(SMALL_CSM)
QWEN3_TTS = qwen3_tts(SMALL_QWEN3_TTS)
# The same frames with a text beside them.
TRACKED_CSM = replace(
    CSM,
    name="tracked_csm",
    layout=replace(CSM.layout, num_input_only=1),
    track=TextTrack(CSM.layout.num_output_streams, pad_id=54, end_id=55),
)
PARALLEL = replace(CSM, name="in_parallel", depth=None, end_frame=())  # all codebooks at once
# A set of depth weights for each code.
BY_STEP = replace(
    CSM,
    name="small_by_step",
    depth=replace(SMALL_DEPTH, rope={}, has_head_norms=False, schedule=tuple(range(CSM.layout.num_output_streams - 1))),
)
BAGPIPER = bagpiper(SMALL_BAGPIPER)
OPUSLM = opuslm(SMALL_OPUSLM)
DIALOGUE = opuslm_dialogue(SMALL_OPUSLM)
# By the name that a checkpoint's config.json gives.
FAMILIES = {
    "small_bagpiper": BAGPIPER,
    "small_opuslm": OPUSLM,
    "small_dialogue": DIALOGUE,
}


def families_of_plugins() -> dict[str, Family]:
    """Return the small families in the tests of plug-ins, by the name that `lab/releases/registered` gives them."""
    points = entry_points(group="stretto.families")
    names = sorted(point.name for point in points if point.value.startswith("plugins."))
    found = ((name, plugin(name)) for name in names)
    return {name: registered.build(None) for name, registered in found if registered is not None}


def families_with_conditions() -> dict[str, Family]:
    """Return the small families of plug-ins whose prompts have conditions; without plug-ins, there are none."""
    return {name: family for name, family in families_of_plugins().items() if family.mechanism.conditions is not None}
