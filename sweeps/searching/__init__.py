"""Searches: a space of settings, a sampler that proposes, rungs that give up early, and the store that remembers.

A proposal depends on the file, its number and the trials before it, never on the state of a process: that is why a
search goes on after any kill as if there had been none.

| file | holds |
|---|---|
| space | parameters, conditions between them, their order, grids over them |
| search_file | the strict loader of `sweeps/searches/*.yaml` |
| rungs | asynchronous successive halving on values read from the tracking store |
| history | tracking store -> trials -> Optuna study -> the next proposal |
| conductor | which trial comes next, what became of the last one |
| on_ray | the conductor's trials on Ray Tune |
| importance | which parameter mattered, as a table |
"""
