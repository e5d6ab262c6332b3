"""Dataset cards and model cards: facts about a run, filled into templates."""
