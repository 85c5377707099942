"""This family's mechanism (`stretto.family.mechanism`): words that the model requests one by one."""
