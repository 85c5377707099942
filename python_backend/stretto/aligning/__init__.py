"""Times of words by forced alignment with a CTC model, in a process of its own."""
