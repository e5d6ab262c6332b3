"""Controls for preferences with prompt tuples: what the wording alone, the bare subject and the explicit prompt tell."""
