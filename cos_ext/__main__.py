"""`python -m cos_ext`: calls the command line, and nothing else."""

import os
import sys

from .cli import INTERRUPTED, main

if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:
        os._exit(
            code
        )  # a thread may still load a batch; sys.exit waits for it, or breaks off in C++
    sys.exit(code)
