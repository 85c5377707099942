"""Audio encoders of prompts: XEUS with k-means, GLM-4-Voice's tokenizer, x-vectors."""
