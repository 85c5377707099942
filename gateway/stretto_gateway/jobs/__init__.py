"""Jobs that read long texts aloud, such as books, while no other request needs the server."""
