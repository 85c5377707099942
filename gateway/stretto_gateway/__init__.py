"""Gateway: OpenAI's audio API over HTTP for a Stretto server, which it reaches through `stretto_client` alone."""
