"""How codes are sampled: this family's mechanism."""
