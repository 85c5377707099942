"""This family's mechanism: attention to the text, its prior, and the end of a reply."""
