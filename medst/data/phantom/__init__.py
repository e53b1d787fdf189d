"""The chest phantom: an analytic thorax, its reports, written in the layouts of the real data sets.

    generate(PRESETS["tiny"], Path("data/phantom/tiny"), num_workers=2)

| module | does |
|---|---|
| `presets` | every dial, the named presets |
| `course` | patients, visits and findings over time: the truth |
| `anatomy` | the thorax of one study in centimetres |
| `imaging` | rays, exposure, processing, boxes |
| `grammar` and its parts | reports, phrases, sentence pairs |
| `labels` | the CheXpert labels of a report |
| `write` | files, tables, workers |
| `marginals`, `contact_sheet` | for the eye: frequencies beside the published ones, pictures |

What must not live here: anything that reads the layouts back; the readers treat a phantom as real data.
"""

from medst.data.phantom.presets import PRESETS, PhantomConfig, PhantomError, load_preset
from medst.data.phantom.write import estimate_bytes, generate, read_phantom_config

__all__ = ["PRESETS", "PhantomConfig", "PhantomError", "estimate_bytes", "generate", "load_preset",
           "read_phantom_config"]
