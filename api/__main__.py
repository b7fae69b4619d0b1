"""`python -m api serve`: the console script, without an installation."""

from api.cli import main

if __name__ == "__main__":
    main()
