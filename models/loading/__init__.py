"""From a catalogue entry to a loaded model that has passed its self-test: devices, memory, plans."""
