"""One model a file: its paper, its departures from it, its configuration and its module."""
