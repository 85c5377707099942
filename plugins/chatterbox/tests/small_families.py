"""Small vocabularies with the structure of the published ones and few ids, and their families."""

from stretto_chatterbox.family import ChatterboxVocabulary, TurboVocabulary, chatterbox, chatterbox_turbo

# 60 ids of text, 20 codes, their start, four ids of nothing and the end; three rows of a voice.
CHATTERBOX = chatterbox(ChatterboxVocabulary(60, 20, 26, 30, 512, 3, ("default",), max_model_len=512))

# 60 ids of text, 20 codes, their start and the end, and a row of a voice.
TURBO = chatterbox_turbo(TurboVocabulary(60, 20, {"default": (3, 1)}, max_model_len=512))
