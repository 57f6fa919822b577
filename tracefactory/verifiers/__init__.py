"""The kinds of verifier, one file each."""
