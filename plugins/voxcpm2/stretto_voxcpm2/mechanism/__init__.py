"""Mechanism of this family (`stretto.family.mechanism`): guidance within a row."""
