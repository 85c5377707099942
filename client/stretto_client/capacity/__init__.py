"""Measurement of the largest number of concurrent streams that a server speaks without gaps: `stretto capacity`."""
