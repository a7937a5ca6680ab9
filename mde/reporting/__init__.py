"""Figures, tables and the page that shows a study."""
