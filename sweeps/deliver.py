"""Delivers runs that ended while the tracking store was away: `python sweeps/deliver.py --help`."""

import os
import sys

# The code beside this script runs, whichever checkout is installed.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

if __name__ == "__main__":
    from sweeps.start import run

    sys.exit(run("deliver"))
