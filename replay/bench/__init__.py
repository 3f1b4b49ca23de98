"""Benches of what runs in one process: the graph store and the learner, beside their peers."""
