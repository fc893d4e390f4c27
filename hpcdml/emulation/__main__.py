"""``python -m hpcdml.emulation``."""

import sys

from hpcdml.emulation.command_line import main

if __name__ == "__main__":
    sys.exit(main())
