"""Commands for trained models, ``zoo COMMAND``: their parser, their arguments, and what they do.

The modules import torch only inside functions, so that ``zoo list`` and errors in arguments appear at once.
"""
