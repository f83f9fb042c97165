"""edgerun beside its peers, on real models and real labelled data."""
