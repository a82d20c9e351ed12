"""`python -m train [CONFIG] [--field value …]`."""

import sys

from train.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
