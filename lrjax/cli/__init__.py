"""The command line: `lrjax demo` and `lrjax complete`."""
