"""Controlled experiments: who gets what, what came of it, and whether that was chance."""
