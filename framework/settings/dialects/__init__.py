"""Flags of other programs, one file per program; a file here is all that a program needs.

A dialect has `FLAGS`, its flags by name, and `translate`, which replaces them in a mapping of flags by those of
Secateur. `discovery.py` finds them. Start with `snipit.py`.
"""
