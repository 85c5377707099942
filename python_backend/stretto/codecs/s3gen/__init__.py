"""S3Gen, the acoustic decoder of Chatterbox: speech tokens and a voice to mel by flow matching, then HiFT."""
