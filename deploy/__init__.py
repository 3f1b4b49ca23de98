"""Running it: what a machine has, and what it lacks."""
