"""Objectives: errors on winners and losers in, one loss per group out. One file each, found by its name."""
