"""The kinds of decoder, one file each."""
