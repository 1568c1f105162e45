"""Files from outside: read within bounds, checked against one schema per kind of file."""
