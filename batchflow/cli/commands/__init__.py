"""The commands of the command line, one module each; each is loaded when it is called."""
