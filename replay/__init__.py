"""The past as a stream, and how well we would have done."""
