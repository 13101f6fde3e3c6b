"""Detectors of change on streams of losses, each vectorised over many streams.

They are sequential, so their state is saved and restored but never merged: a stream has one reader. What they promise
holds for independent losses in [0, 1]; see docs/monitoring.md for what autocorrelation and heavy tails do to them.
"""

from monitors.streams.adwin import ADWIN
from monitors.streams.cusum import CUSUM
from monitors.streams.ddm import DDM
from monitors.streams.detector import Detector
from monitors.streams.ewma import EWMA
from monitors.streams.hddm_a import HDDMA
from monitors.streams.hddm_w import HDDMW
from monitors.streams.kswin import KSWIN
from monitors.streams.page_hinkley import PageHinkley

__all__ = ["ADWIN", "CUSUM", "DDM", "EWMA", "HDDMA", "HDDMW", "KSWIN", "Detector", "PageHinkley"]
