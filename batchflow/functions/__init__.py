"""Functions as commands: where a function comes from, and how it travels to a node."""
