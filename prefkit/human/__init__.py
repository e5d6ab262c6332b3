"""Human votes: the voting page, the import of saved votes, and how well people agree with each other and scorers."""
