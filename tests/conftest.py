"""Configurations shared by the tests, composed from the shipped files."""
