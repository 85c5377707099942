"""Speech of a talker: this family's mechanism (`stretto.families.mechanism`)."""
