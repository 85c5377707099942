"""CSM: Llama over frames of Mimi, and a depth transformer that completes them."""
