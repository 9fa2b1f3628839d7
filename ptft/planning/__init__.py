"""What strategies cost before any runs, and the choice of one under a budget. Verbs and the benchmark ask it; the training loop does not."""
