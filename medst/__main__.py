"""`python -m medst` is the command line."""

from medst.cli import main

main()
