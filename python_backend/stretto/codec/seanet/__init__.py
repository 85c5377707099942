"""SEANet decoders, which several codecs end with."""
