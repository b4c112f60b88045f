"""Assembles eBPF programs.  Pure: nothing here knows what a program is for, or how it is loaded."""
