"""Readers of the published file layouts, for real and phantom data alike: tables and paths, no pixels.

What lives here: one module a data set, each with one `read_...` function that takes the places of its files and
returns a small frozen carrier of tables. What must not: decoding of images, cleaning of text, choices of an
experiment.
"""

from medst.data.readers.chexpert_plus import read_chexpert_plus
from medst.data.readers.corpus import Corpus
from medst.data.readers.covid_chestxray import read_covid_chestxray
from medst.data.readers.covidx import Covidx, read_covidx
from medst.data.readers.mimic_cxr import read_mimic_cxr
from medst.data.readers.ms_cxr import MsCxr, read_ms_cxr
from medst.data.readers.ms_cxr_t import MsCxrT, read_ms_cxr_t
from medst.data.readers.open_i import read_open_i
from medst.data.readers.rsna import Rsna, read_rsna
from medst.data.readers.tables import DataError

__all__ = ["Corpus", "Covidx", "DataError", "MsCxr", "MsCxrT", "Rsna", "read_chexpert_plus", "read_covid_chestxray",
           "read_covidx", "read_mimic_cxr", "read_ms_cxr", "read_ms_cxr_t", "read_open_i", "read_rsna"]
