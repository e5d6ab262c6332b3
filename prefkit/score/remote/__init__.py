"""Scorers and judges that run elsewhere: the client, its memory of answers, and the protocol of `http:` and `exec:`."""
