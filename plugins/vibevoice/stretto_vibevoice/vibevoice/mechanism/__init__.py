"""This family's mechanism (`stretto.family.mechanism`): stretches of audio with marks around them."""
