"""Flags of other programs, one file a program.

A mapping of their flags comes in; a mapping of ours with notes goes out.
Start with `snipit.py`.
"""
