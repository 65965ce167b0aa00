"""Tests of the commands that need the whole project."""
