"""`bftfs`, and `python -m bftfs`: the command line, which Ctrl-C ends with one sentence.

Also while it is loaded, which takes longer than some commands.
"""

import sys


def main() -> None:
    """Run the command line; does not return."""
    try:
        from bftfs.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("bftfs: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
