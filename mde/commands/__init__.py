"""The stages of a study: each reads the study, calls the rooms below, and writes to the study."""
