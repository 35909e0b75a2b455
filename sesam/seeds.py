"""Seeds that depend on names and numbers only, never on the order of the work."""

import hashlib
import json


def seed_of(*parts: str | int) -> int:
    """A 64-bit seed from parts, the same in every process and on every machine."""
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16], 16)
