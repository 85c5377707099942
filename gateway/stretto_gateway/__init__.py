"""Gateway that offers OpenAI's audio API over HTTP for a Stretto server.

It calls the server only through `stretto_client`.
"""
