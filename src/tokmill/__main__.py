"""`python -m tokmill`."""

from tokmill.cli import main

if __name__ == "__main__":
    main()
