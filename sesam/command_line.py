"""Which round a stage was started for."""

from __future__ import annotations

import argparse

from sesam.errors import SesamError
from sesam.params import Params, load_params


def parse_round(description: str) -> tuple[str, Params]:
    """The ROUND that a stage was started with, and the checked params; SesamError if they have no such round."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("round", help="a key of `rounds` in params.yaml")
    name = parser.parse_args().round
    params = load_params()
    if name not in params.rounds:
        raise SesamError(f"params.yaml: rounds has no entry {name!r}; it has {', '.join(params.rounds)}.")
    return name, params
