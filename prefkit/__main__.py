"""`python -m prefkit`, which is what `accelerate launch -m prefkit` runs."""

from prefkit.cli.main import main

if __name__ == "__main__":
    main()
