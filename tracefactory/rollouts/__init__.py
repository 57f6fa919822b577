"""Built-in rollouts, one file each."""
