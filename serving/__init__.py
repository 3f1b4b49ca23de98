"""What lies between the learner and a client."""
