"""Discovery of channel groups: the slices of tensors that must be removed together.

The input is a network and an example input, the output are `ChannelGroup`s, each either verified by computation or
protected with a reason.
Start with `discovery.py`.
"""
