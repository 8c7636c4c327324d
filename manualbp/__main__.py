"""The program `manualbp`, which `python -m manualbp` is too."""

import sys


def run() -> None:
    """Run the command that was typed, and leave Python with its exit code."""
    try:
        from manualbp.cli import main  # a second long, and Ctrl-C may come here already

        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    run()
