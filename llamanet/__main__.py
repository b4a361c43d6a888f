"""`python -m llamanet` is the `llamanet` command."""

from llamanet.cli import main

if __name__ == "__main__":
    main()
