"""RUN.toml: its tables, and what they are turned into."""
