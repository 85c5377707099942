"""Audio encoders for prompts: XEUS with k-means, GLM-4-Voice tokenizer, x-vectors, and spectra of voices."""
