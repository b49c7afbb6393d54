"""Which channels belong together.

A network and an example input come in; `ChannelGroup`s go out, each verified by computation, or protected with a
reason.
Start with `discovery.py`.
"""
