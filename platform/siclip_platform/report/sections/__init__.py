"""The sections of a report. Each is a function from a study to its section, or None if it does not apply."""
