"""`python -m mount`."""

from mount.main import main

main()
