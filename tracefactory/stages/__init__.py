"""The operations of a pipeline: `stages/<verb>/<name>.py`, and `stages/<verb>/family.py` for families of them."""
