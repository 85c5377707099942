"""Pure torch: how codes lie in a sequence of rows. It knows no model and no server."""
