"""This family's mechanism (`stretto.family.mechanism`): begin and end ids of each stream."""
