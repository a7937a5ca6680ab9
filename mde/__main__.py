"""`python -m mde`: the command line."""

from mde.cli import main

main()
