"""The papers behind the library, their claims checked by numbers: `python -m papers`."""
