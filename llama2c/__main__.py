"""`python -m llama2c`: what has to be said before NumPy is loaded, then the command line."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """The command line; returns the exit code."""
    # NumPy's OpenBLAS starts a thread for each core, which spins for a tenth of a second: as long as a short story takes. We
    # never call it, and its threads take the cores from ours.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from .commands.main import main as command_line
    except ImportError as error:
        print(f"llama2c: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
