"""S3Gen, the acoustic part of Chatterbox: speech tokens in a voice's sound, flow matching, HiFT to samples."""
