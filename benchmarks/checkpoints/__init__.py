"""What the tools for codecs share: checkpoints with random weights, and a codec driven as the decoder drives it."""
