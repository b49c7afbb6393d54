"""How a file in criterions/ becomes a criterion.

A folder comes in; names, descriptions read from the source, and classes go out. Only `get` and `build` import.
Start with `registry.py`.
"""
