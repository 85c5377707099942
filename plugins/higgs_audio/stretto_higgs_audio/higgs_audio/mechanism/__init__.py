"""Begin and end ids of each stream: this family's mechanism (`stretto.family.mechanism`)."""
