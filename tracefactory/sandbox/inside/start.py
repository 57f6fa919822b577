"""The script that the sandbox starts: `python -I start.py CONFIG_FD RESULT_FD TESTS_FD`."""

import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0])
from tracefactory.sandbox.inside.main import main

del sys.path[0]
main()
