"""Trained models -> folders that TF Serving loads."""
