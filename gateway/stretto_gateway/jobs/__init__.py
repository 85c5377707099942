"""Jobs that read long texts aloud, such as books, while nobody else needs the server."""
