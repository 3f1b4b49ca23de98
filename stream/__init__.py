"""What happened: events, what they mean, how they come in."""
