"""`python -m sweeps COMMAND`: all commands, those that steer a sweep from another terminal among them."""

import sys

if __name__ == "__main__":
    from sweeps.start import run

    sys.exit(run(sys.argv.pop(1) if len(sys.argv) > 1 else "--help"))
