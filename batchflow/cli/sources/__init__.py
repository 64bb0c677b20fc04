"""Where the tasks of a run are written: the command line, files of tables, of JSON, of workflows."""
