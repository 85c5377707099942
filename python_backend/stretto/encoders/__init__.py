"""Audio encoders for prompts: XEUS with k-means, GLM-4-Voice tokenizer, S3Gen, x-vectors."""
