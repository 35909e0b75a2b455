"""The command `sesam`: main.py has the parser, the other modules one subcommand each."""
