"""Pure torch: from logits to one token per stream."""
