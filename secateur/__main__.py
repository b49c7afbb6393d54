"""`python -m secateur`: the command line."""

import sys

from secateur.main import main

if __name__ == "__main__":
    sys.exit(main())
