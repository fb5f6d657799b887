"""Guests of real VMMs that relay: they send the frames they are told, and say which they get."""
