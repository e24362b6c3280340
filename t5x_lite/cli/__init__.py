"""The command line: flags and gin files, collected from the commands that features declare."""
