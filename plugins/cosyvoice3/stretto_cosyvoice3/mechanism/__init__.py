"""How codes are sampled, text in rows of its own, and which frames are decoded: this family's mechanism."""
