"""`python -m featurestore` is the command line."""

from featurestore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
