"""`python -m edgerun` is the command line."""

from edgerun.cli import main

if __name__ == "__main__":
    main()
