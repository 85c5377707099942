"""Whether every answer is right, or an error that says so, whatever is done to the server."""
