"""Guidance within a row: this family's mechanism (`stretto.family.mechanism`)."""
