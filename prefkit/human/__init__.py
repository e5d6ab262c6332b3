"""Human votes: the voting page, the import of its files, and the agreement of people with each other and with scorers."""
