"""Codecs between codes and waveforms. Each codec is a file or folder that implements the protocol in `base`."""
