"""Talk with a base and with its edit at once: in a terminal, and in a local web page."""
