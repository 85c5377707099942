"""What crosses a process or a model boundary."""
