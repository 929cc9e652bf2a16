"""The timeline of a recorded test: lanes with spans and instants, as SVG and as trace-event JSON.

``model.py`` has the types, ``reading.py`` makes them from a test's folder, ``svg.py`` and ``trace_events.py``
draw them, ``files.py`` writes both files.
"""
