"""Flags of other programs, one file per program.

A mapping of their flags is translated to a mapping of flags of Secateur, with notes.
Start with `snipit.py`.
"""
