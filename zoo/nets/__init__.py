"""Networks that two or more models use."""
