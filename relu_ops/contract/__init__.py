"""What every output bit is: the operators' table, graphs of them, and both as NumPy runs them."""
