"""Audio encoders for prompts: XEUS with k-means, GLM-4-Voice speech tokenizer, S3Gen voices, x-vectors."""
