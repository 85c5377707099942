"""How codes are sampled, and which frames of a reply are decoded: this family's mechanism."""
