"""Models: what boxes ask of them, answered with keys of the host's, metered and kept to budgets."""
