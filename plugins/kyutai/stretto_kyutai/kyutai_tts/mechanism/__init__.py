"""Words that the model asks for one by one: this family's mechanism (`stretto.family.mechanism`)."""
