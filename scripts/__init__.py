"""Developer scripts: setup, tests, demos, lock files, releases, and generators of test fixtures."""
