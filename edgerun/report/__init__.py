"""Pages that a person looks at: HTML with plots, made from what the verbs found."""
