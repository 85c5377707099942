"""Gateway's port for Wyoming, the protocol of Home Assistant's voice assistants."""
