"""`python -m llamanet.node` is `llamanet node`. The only import in the package that points up."""

import sys

from llamanet.cli import main

if __name__ == "__main__":
    main(["node", *sys.argv[1:]])
