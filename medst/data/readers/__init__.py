"""Readers of the published file layouts, for real and phantom data alike: tables and paths, no pixels.

What lives here: one module a data set, each with one `read_...` function that takes the data root and returns
a small frozen carrier of tables. What must not: decoding of images, cleaning of text, choices of an experiment.
"""

from medst.data.readers.covidx import Covidx, read_covidx
from medst.data.readers.mimic_cxr import MimicCxr, read_mimic_cxr
from medst.data.readers.ms_cxr import MsCxr, read_ms_cxr
from medst.data.readers.ms_cxr_t import MsCxrT, read_ms_cxr_t
from medst.data.readers.rsna import Rsna, read_rsna
from medst.data.readers.tables import DataError

__all__ = ["Covidx", "DataError", "MimicCxr", "MsCxr", "MsCxrT", "Rsna", "read_covidx", "read_mimic_cxr",
           "read_ms_cxr", "read_ms_cxr_t", "read_rsna"]
