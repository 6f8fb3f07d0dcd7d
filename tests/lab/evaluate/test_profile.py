"""What "auto" means on the embedded model is what was measured on it."""

from lib_decouple.lab.evaluate.arms import ARMS
from lib_decouple.profiles import EMBEDDED, closed
from lib_decouple.settings import Settings


def test_the_embedded_profile_is_the_measured_arm():
    assert closed(Settings(enabled=True), EMBEDDED["decouple-drawn"], 20) == ARMS[2]["com"]
