"""`python -m facescale` is the `facescale` command, also where its script is not on the PATH."""

from facescale.cli import main

if __name__ == "__main__":
    main()
