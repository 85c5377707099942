"""Small vocabularies with the structure of the published ones and few ids, and their families."""

from stretto_higgs_audio.higgs_audio.family import HiggsAudioVocabulary, higgs_audio

# 60 ids of text, four codebooks of 5 codes, a begin and an end each.
HIGGS_AUDIO = higgs_audio(HiggsAudioVocabulary(60, 4, 5, 58, 59, {}, max_model_len=512))
