"""Gateway: OpenAI's audio API over HTTP for a Stretto server, accessed through `stretto_client` only."""
