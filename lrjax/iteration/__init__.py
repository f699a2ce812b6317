"""How any solver is started, run and recorded."""
