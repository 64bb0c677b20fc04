"""The command line: one module for each group of commands, loaded when it is called.

Only what was asked for goes to stdout; everything else (progress, notes, errors) goes to stderr. What a
command needs of the client is imported inside it, so that `batchflow --help` costs next to nothing.
"""
