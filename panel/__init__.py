"""The web side: webhook routes, health, metrics, and the control panel for people."""
