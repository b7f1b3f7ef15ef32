"""Commands for trained models, ``python -m zoo COMMAND``: their parser, their arguments, and what they do.

The modules import torch only inside functions, so that ``python -m zoo list`` and errors in arguments appear at once.
"""
