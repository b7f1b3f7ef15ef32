"""Networks that several models share."""

from zoo.checks.moved import names_in

__getattr__ = names_in("zoo.nets", "zoo.nets.layers", "zoo.nets.unet", "zoo.nets.adversarial")
