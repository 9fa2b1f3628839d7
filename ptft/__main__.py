"""`python -m ptft` and the command `ptft`."""

from ptft.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
