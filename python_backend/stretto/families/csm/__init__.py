"""CSM: Llama over frames of Mimi, with a depth transformer that completes each frame."""
