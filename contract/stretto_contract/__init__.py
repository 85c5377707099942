"""Code that client, gateway and server share: options and their ranges, texts, limits and addresses."""
