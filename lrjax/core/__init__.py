"""What everything stands on: pytrees, checks of arguments, units, draws. Imports nothing else of the library."""
