"""How wrong about winners and losers, in; one loss per group, out. One objective a file, found by its name."""
