"""The web application: webhook routes, health, metrics, and the control panel."""
