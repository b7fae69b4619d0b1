"""`python -m api serve`: the console script for the source directory; Holdfast must be installed all the same."""

from api.cli.main import main

if __name__ == "__main__":
    main()
