"""`python -m tracefactory`."""

from tracefactory.cli import main

main()
