"""People's votes: the page to vote on, the votes that come back, and how far they agree with each other and with scorers."""
