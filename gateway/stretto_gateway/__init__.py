"""OpenAI's audio API over HTTP, before a server of Stretto, which it knows through `stretto_client` alone."""
