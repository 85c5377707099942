"""Audio encoders for prompts: XEUS with k-means, GLM-4-Voice's speech tokenizer, x-vectors."""
