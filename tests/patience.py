"""How long a test waits for what must come. Only what never comes may cost so much: no machine is too busy for it."""

PATIENCE_S = 600.0
