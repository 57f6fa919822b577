"""`rollout:` operations, one for every registered rollout."""
