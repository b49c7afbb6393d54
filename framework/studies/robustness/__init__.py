"""Attacks on trained networks, and what is to be said about their results."""
