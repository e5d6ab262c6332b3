"""What can be fitted, a file each: `plugin` is a class with Options and `run() -> dict`."""
