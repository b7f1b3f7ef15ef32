"""What comes out of a model: samples in chunks, each with noise of its own, and pictures of them."""
