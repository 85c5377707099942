"""Scripts that run the code of models' authors, in environments of their own, and write replies for tests."""
