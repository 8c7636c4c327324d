"""`python -m manualbp` is the program `manualbp`."""

from manualbp.cli import run

if __name__ == "__main__":
    run()
