"""Labelling an image: its plan, a grain of it on one device, and what comes out."""
