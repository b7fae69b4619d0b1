"""`python -m api serve`: the console script under another name; Holdfast must be installed all the same."""

from api.cli.main import main

if __name__ == "__main__":
    main()
