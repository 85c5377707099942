"""Small vocabularies with the structure of the published ones and few ids, and their families."""

from dataclasses import replace

from stretto.family.base import DepthSpec
from stretto.family.mechanism import Mechanism
from stretto.family.plugin import FamilyPlugin
from stretto_kyutai.kyutai_stt.family import SttVocabulary, kyutai_stt
from stretto_kyutai.kyutai_tts.family import TtsVocabulary, kyutai_tts
from stretto_kyutai.kyutai_tts.mechanism.script import ScriptedText
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions
from stretto_kyutai.moshi.family import MoshiVocabulary, moshi
from stretto_kyutai.personaplex.family import PersonaPlexVocabulary, PublishedVoice

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

KYUTAI_STT = kyutai_stt(SMALL_STT)
MOSHI = moshi(SMALL_MOSHI)
KYUTAI_TTS = kyutai_tts(SMALL_TTS)
_AHEAD = replace(SMALL_TTS.script, ahead=2, second_base=KYUTAI_TTS.layout.vocab_size - 50)
# KYUTAI_TTS with a second text stream, which shows the word after the next; the depth transformer reads it, too.
KYUTAI_TTS_AHEAD = replace(
    KYUTAI_TTS,
    name="kyutai_tts_ahead",
    track=ScriptedText(4, SMALL_TTS.nothing, 0, script=_AHEAD),
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
