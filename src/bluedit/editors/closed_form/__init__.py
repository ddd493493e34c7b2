"""Locate-then-edit in closed form: the methods and strategies of the paper."""
