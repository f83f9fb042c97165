"""The verbs: what the CLI and `import edgerun` offer; one file per verb."""
