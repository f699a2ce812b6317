"""`python -m lrjax`."""

import sys

from lrjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
