"""Gateway that offers OpenAI's audio API over HTTP for a Stretto server, which it calls only via `stretto_client`."""
