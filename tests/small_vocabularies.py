"""Small vocabularies with the structure of the published families and few ids."""

from dataclasses import replace

from stretto.families.bagpiper.family import BagpiperVocabulary, bagpiper
from stretto.families.csm.family import CsmVocabulary, csm, llama3_rope
from stretto.families.opuslm.family import OpusVocabulary, opuslm, opuslm_dialogue
from stretto.families.qwen3_tts.family import CodecIds, Qwen3TtsVocabulary, TextIds, qwen3_tts
from stretto.family.base import DepthSpec
from stretto.family.input_tracks import TextTrack
from stretto.family.mechanism import Mechanism
from stretto.family.plugin import FamilyPlugin
from stretto_chatterbox.family import ChatterboxVocabulary, TurboVocabulary, chatterbox, chatterbox_turbo
from stretto_fish_s2.family import FishVocabulary, fish_s2
from stretto_higgs_audio.higgs_audio.family import HiggsAudioVocabulary, higgs_audio
from stretto_kyutai.kyutai_stt.family import SttVocabulary, kyutai_stt
from stretto_kyutai.kyutai_tts.family import TtsVocabulary, kyutai_tts
from stretto_kyutai.kyutai_tts.mechanism.script import ScriptedText
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions
from stretto_kyutai.moshi.family import MoshiVocabulary, moshi
from stretto_kyutai.personaplex.family import PersonaPlexVocabulary, PublishedVoice
from stretto_moss.moss_tts.family import MossVocabulary, moss_tts
from stretto_moss.moss_tts_local.family import Gpt2Spec, LocalVocabulary, moss_tts_local
from stretto_moss.moss_tts_realtime.family import MossRealtimeVocabulary, moss_tts_realtime

# 256 special tokens, 300 of text, eight streams of a pad and 16 codes each.
SMALL_BAGPIPER = BagpiperVocabulary(
    vocab_size=256 + 300 + 8 * 17, text=range(256, 556), first_audio=556, codebook_size=16
)
# 256 special tokens, 20 semantic ones, eight codebooks of 12 codes, 60 of text.
SMALL_OPUSLM = OpusVocabulary(vocab_size=432, text=(372, 432), ssl=(256, 276), codec=276, codebook_size=12)

# 60 ids of text, six codebooks of 8 codes each; two zeros end a reply, so that some do so by chance.
SMALL_DEPTH = DepthSpec(
    24, 40, 2, num_heads=2, num_kv_heads=1, head_dim=16, eps=1e-5, rope=llama3_rope(32, 0.1, 0.5, 4)
)
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

# 120 ids of text, of which 40 are codes, and three more codebooks; the width is that of `write_checkpoint`.
SMALL_FISH_S2 = FishVocabulary(
    120, 60, 4, 40, 50, 51, 52, 53, max_model_len=512,
    depth=DepthSpec(
        128, 96, 2, num_heads=4, num_kv_heads=2, head_dim=16, eps=1e-6,
        rope={"rope_type": "default", "rope_theta": 1e4}, projection=None,
    ),
)  # fmt: skip
FISH_S2 = fish_s2(SMALL_FISH_S2)

# 60 ids of text, four codebooks of 5 codes, a begin and an end each.
HIGGS_AUDIO = higgs_audio(HiggsAudioVocabulary(60, 4, 5, 58, 59, {}, max_model_len=512))

# 60 ids of text, four codebooks of 5 codes and a pad each.
SMALL_MOSS_TTS = MossVocabulary(60, 4, 5, 52, 53, 54, 55, 56, 57, 58, 59, max_model_len=512)
MOSS_TTS = moss_tts(SMALL_MOSS_TTS)

# 60 ids of text, four codebooks of 8 codes, a pad, a begin and an end each.
SMALL_MOSS_TTS_REALTIME = MossRealtimeVocabulary(
    60, 4, 8, 56, 57, 58, 59, max_model_len=512,
    depth=replace(SMALL_DEPTH, projection="plain", has_head_norms=True, num_first=1),
)  # fmt: skip
MOSS_TTS_REALTIME = moss_tts_realtime(SMALL_MOSS_TTS_REALTIME)

# 60 ids of text, four codebooks of 8 codes each; the width is that of `write_checkpoint`.
SMALL_MOSS_TTS_LOCAL = LocalVocabulary(
    60, 4, 8, 53, 54, 55, 56, 57, 58, 59, max_model_len=512,
    depth=Gpt2Spec(
        128, 96, 2, num_heads=4, num_kv_heads=4, head_dim=32, eps=1e-6,
        rope={"rope_type": "default", "rope_theta": 1e4}, projection=None, num_first=2,
    ),
)  # fmt: skip
MOSS_TTS_LOCAL = moss_tts_local(SMALL_MOSS_TTS_LOCAL)

# 60 ids of text, 20 codes, their start, four ids of nothing and the end; three rows of a voice.
CHATTERBOX = chatterbox(ChatterboxVocabulary(60, 20, 26, 30, 512, 3, ("default",), max_model_len=512))
# 60 ids of text, 20 codes, their start and the end, and a row of a voice.
TURBO = chatterbox_turbo(TurboVocabulary(60, 20, {"default": (3, 1)}, max_model_len=512))

# 60 ids of text beside three codebooks of 20 codes that are given.
SMALL_STT = SttVocabulary(60, 3, 20, delay_rows=2, max_model_len=160)

# 60 ids of text beside three codebooks of 20 codes in each direction.
SMALL_MOSHI = MoshiVocabulary(
    60, 3, 20, (0, 1, 2), 160,
    DepthSpec(32, 64, 2, 4, 4, 8, 1e-8, schedule=(0, 1, 1)),
)  # fmt: skip

# With the codes of silence, and two voices.
SMALL_PERSONAPLEX = PersonaPlexVocabulary(
    60, 8, 2048, (0, *[1] * 7), 160,
    DepthSpec(32, 64, 2, 4, 4, 8, 1e-8, schedule=tuple(range(8))),
    (PublishedVoice("a", 3, ((0,) * 17,) * 2), PublishedVoice("b", 1, ((1,) * 17,) * 2)),
)  # fmt: skip

# 60 ids of text, three codebooks of 20 codes that follow the text by 3 rows and more.
SMALL_TTS = TtsVocabulary(
    60, 3, 20, (0, 1, 2), 160,
    DepthSpec(32, 64, 2, 4, 4, 8, 1e-8, schedule=(0, 1, 1)), delay_rows=3,
)  # fmt: skip

KYUTAI_STT, MOSHI, KYUTAI_TTS = kyutai_stt(SMALL_STT), moshi(SMALL_MOSHI), kyutai_tts(SMALL_TTS)
_AHEAD = replace(SMALL_TTS.script, ahead=2, second_base=5)
# KYUTAI_TTS with a second text stream, which shows the word after the next; the depth transformer reads it, too.
KYUTAI_TTS_AHEAD = replace(
    KYUTAI_TTS,
    name="kyutai_tts_ahead",
    track=ScriptedText(4, SMALL_TTS.nothing, 0, script=_AHEAD, num_second_ids=50),
    drawing=_AHEAD,
    depth=replace(SMALL_TTS.depth, num_second_ids=50),
)
# Also with conditions: 21 speaker vectors of three numbers.
CONDITIONED = FamilyPlugin(
    "conditioned",
    lambda _: replace(
        KYUTAI_TTS_AHEAD,
        name="conditioned",
        mechanism=Mechanism(conditions=SpeakerConditions(4, 21, 3)),
        max_model_len=512,
    ),
)
CSM, QWEN3_TTS = csm(SMALL_CSM), qwen3_tts(SMALL_QWEN3_TTS)
# The same frames with a text beside them.
TRACKED_CSM = replace(
    CSM,
    name="tracked_csm",
    layout=replace(CSM.layout, num_input_only=1),
    track=TextTrack(CSM.layout.num_output_streams, pad_id=54, end_id=55),
)
PARALLEL = replace(CSM, name="in_parallel", depth=None, end_frame=())  # all codebooks at once
# A set of depth weights for each code, as Moshi has.
BY_STEP = replace(
    CSM,
    name="small_by_step",
    depth=replace(SMALL_DEPTH, rope={}, has_head_norms=False, schedule=tuple(range(CSM.layout.num_output_streams - 1))),
)
BAGPIPER, OPUSLM, DIALOGUE = bagpiper(SMALL_BAGPIPER), opuslm(SMALL_OPUSLM), opuslm_dialogue(SMALL_OPUSLM)
# By the name that a checkpoint's config.json gives.
FAMILIES = {
    "small_bagpiper": BAGPIPER,
    "small_opuslm": OPUSLM,
    "small_dialogue": DIALOGUE,
}
