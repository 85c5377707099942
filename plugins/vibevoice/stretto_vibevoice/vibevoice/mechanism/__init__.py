"""Stretches of audio with marks around them: this family's mechanism (`stretto.family.mechanism`)."""
