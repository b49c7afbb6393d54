"""Discovery of plug-ins: how a file in criterions/ becomes a criterion.

The registry maps folders to names, descriptions parsed from the source, and classes; only `get` and `build`
import plug-ins.
Start with `registry.py`.
"""
