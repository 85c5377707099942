"""This family's mechanism (`stretto.family.mechanism`): end of a reply by delay ids, and pads of the codebooks."""
