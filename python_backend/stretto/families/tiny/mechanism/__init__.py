"""Alignment pointer into the phonemes of the text: this family's mechanism (`stretto.family.mechanism`)."""
