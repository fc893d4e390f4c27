"""The command line: thin, no logic; every mistake of the user ends here, in one line."""
