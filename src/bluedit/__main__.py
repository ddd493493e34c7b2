"""`python -m bluedit` is the `bluedit` command."""

from bluedit.cli.main import main

if __name__ == "__main__":
    main()
