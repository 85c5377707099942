"""Speech of a talker: this family's mechanism (`stretto.family.mechanism`)."""
