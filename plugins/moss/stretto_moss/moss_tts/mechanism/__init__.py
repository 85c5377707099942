"""End of a reply by delay ids, and pads of the codebooks: this family's mechanism (`stretto.family.mechanism`)."""
