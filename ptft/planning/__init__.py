"""What strategies cost before any runs, and the choice of one under a budget. The training loop does not ask
it."""
