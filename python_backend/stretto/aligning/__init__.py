"""Word times by forced alignment with a CTC model, in a separate process."""
