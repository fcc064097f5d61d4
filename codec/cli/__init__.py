"""The command line: parse, call, print; nothing else. It speaks on standard error, data goes to standard output."""
