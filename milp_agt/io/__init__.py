"""Files on disk, tables of text and figures."""
