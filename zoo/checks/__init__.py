"""What is refused, and in which words: values, labels, pixels, and what a model can do."""
