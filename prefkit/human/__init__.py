"""Human votes: the voting page, the import of its files, and how well people agree with each other and with scorers."""
