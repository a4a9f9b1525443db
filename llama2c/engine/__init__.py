"""Many requests at once: the scheduler, the thread that steps, and the requests as their users see them."""
