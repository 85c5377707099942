"""This family's mechanism (`stretto.family.mechanism`): guidance within a row."""
