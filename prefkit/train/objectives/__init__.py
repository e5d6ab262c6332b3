"""Objectives, which turn errors on winners and losers into one loss per group. One file each, found by its name."""
