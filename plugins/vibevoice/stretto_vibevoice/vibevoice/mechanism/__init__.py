"""Mechanism of this family (`stretto.family.mechanism`): stretches of audio with marks around them."""
