"""Functions on graphs: no arithmetic is done here."""
