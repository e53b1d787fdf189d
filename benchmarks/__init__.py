"""What the platform costs, measured against the way the published program runs. `make bench` runs it all.

What lives here: slow ways to compute what the model computes, settings, stopwatches, the report. What must not:
anything that training or a study needs; nothing outside imports this room.
"""
