"""Bottom-up saliency: what stands out of an image by itself, with no model at all.

One file per model, each a pure function from `(B, 3, H, W)` in [0, 1] to `(B, H, W)`, and the method that wraps it.
"""
