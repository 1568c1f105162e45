"""Reading files from outside: bounded parsing, and one schema per kind of file."""
