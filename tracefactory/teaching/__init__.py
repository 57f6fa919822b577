"""Train a student on several datasets and say, with intervals, which of them teaches it best."""
