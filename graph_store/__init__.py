"""The temporal graph, kept up to date: who met what, when, and with which feedback."""
