"""The published forms of a dataset, one file each."""
