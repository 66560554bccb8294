"""``python -m rampd`` is the ``rampd`` command."""

from rampd.cli.rampd import main

if __name__ == "__main__":
    main()
