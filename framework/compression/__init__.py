"""Deep Compression of a trained network (arXiv:1510.00149): weight sharing, Huffman coding, file format.

Takes the weights of a network; returns networks whose weights share few values, and the bytes of a file, without
pickle. `weight_sharing.py` clusters and fine-tunes, `coded_file.py` writes and reads what storage saves.
Start with `coded_file.py`.
"""
