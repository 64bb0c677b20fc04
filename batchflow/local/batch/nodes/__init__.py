"""The nodes of the local Batch service: directories, commands in real processes, resource files."""
