"""``python -m hpcdml`` is the command ``hpcdml``."""

import sys

from hpcdml.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
