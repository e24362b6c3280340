"""`python -m t5x_lite`: the command line (`t5x_lite.cli.main`)."""

from t5x_lite.cli.main import main

if __name__ == "__main__":
    main()
