"""`python -m bftfs`."""

from bftfs.cli.main import main

main()
