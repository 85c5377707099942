"""Command `stretto verify`: looks for marks of synthetic speech in audio files."""
