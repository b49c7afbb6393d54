"""The data sets, one a file; the name of the file is that of the class and that on the command line."""
