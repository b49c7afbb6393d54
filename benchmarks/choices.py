"""The choices that were made by measurement, measured again: `python -m benchmarks.choices`.

Each as it is against what it was chosen over, by turns:

- LeakyReLU in place against not in place (utils/layers.py), training steps of dense and cut VGG16;
- channels-last against contiguous (framework/probing.py chooses for each network), the same steps;
- fused Adam against foreach (framework/assemble.py), the optimizer's step alone and whole training steps;
- denormal numbers flushed to zero or not (framework/assemble.py), a network of which most signals vanish.
"""
