"""The command `sesam`, also as `python -m sesam`."""

from sesam.cli.main import main
from sesam.errors import run_main


def run() -> None:
    run_main(main)


if __name__ == "__main__":
    run()
