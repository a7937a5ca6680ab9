"""Text domains: what text there is, under which name, and how it becomes tokens."""
