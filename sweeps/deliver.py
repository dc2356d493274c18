"""Delivers runs that ended while the tracking store was away: `python sweeps/deliver.py --help`."""

import os
import sys

# The code beside this script runs, whichever checkout is installed, and no module of this folder by a
# name of its own.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

if __name__ == "__main__":
    try:
        from sweeps import start

        sys.exit(start.run("deliver"))
    except KeyboardInterrupt:  # in the first moments; afterwards that function has its own word
        print("stopped", file=sys.stderr)
        sys.exit(130)
