"""This family's mechanism (`stretto.family.mechanism`): speech of a talker."""
