"""Mechanism of this family (`stretto.family.mechanism`): a talker speaks the reply."""
