"""The commands of the export, one file each.

Imports every wing; a command imports what it needs when it runs.
"""
