"""SEANet decoders, the last stage of several codecs."""
