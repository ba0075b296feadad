"""Figures and HTML in small pieces, for every page that the package writes; nothing here knows what a run is."""
