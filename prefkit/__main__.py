"""The entry point of `python -m prefkit` and `accelerate launch -m prefkit`."""

from prefkit.cli.main import main

if __name__ == "__main__":
    main()
