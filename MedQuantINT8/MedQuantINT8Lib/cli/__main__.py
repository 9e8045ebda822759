"""``python -m MedQuantINT8Lib.cli``: the command medquant where no script is installed."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
