"""Attention to the text, its prior, and the end of a reply: this family's mechanism."""
