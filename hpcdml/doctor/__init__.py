"""Checks an installation, alone or under a launcher. Its checks import the libraries: any of them may be broken."""
