"""Documents out of files of any format, wherever they lie."""
