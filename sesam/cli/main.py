"""The parser of the command `sesam`.

A subcommand is a module with `add_arguments(parser)`, `run(options)`, a docstring, whose first line is its help, and
`REPOSITORY_FILES` if it needs a clone of the repository. Modules import PyTorch in `run` alone: help is quick.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sesam.cli import download, explain, export, init, pull, segment, tile
from sesam.errors import SesamError

COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in (init, pull, explain, export, segment, tile, download)
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; `options.module` is the module of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="sesam",
        description="Weak labels to semantic pseudo-labels with Segment Anything. The pipeline itself runs with "
        "`dvc repro`; these are the commands around it.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command, module in COMMANDS.items():
        assert module.__doc__
        subparser = subparsers.add_parser(
            command,
            help=module.__doc__.splitlines()[0].rstrip("."),
            description=module.__doc__.rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(module=module, command=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments`, those of the process by default; SesamError for bad input."""
    options = build_parser().parse_args(arguments)
    for name in getattr(options.module, "REPOSITORY_FILES", ()):
        if not Path(name).exists():
            missing = f"sesam {options.command} needs {name}, which is not in {Path.cwd()}"
            raise SesamError(f"{missing}. Run it in the root of a clone of the repository.")
    options.module.run(options)
