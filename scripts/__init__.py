"""Programs for people: set up, serve, measure, train. Nothing in the package imports them."""
