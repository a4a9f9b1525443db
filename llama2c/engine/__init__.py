"""Many requests at once, and what they share."""
