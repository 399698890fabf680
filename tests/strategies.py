"""What property tests draw their input from, and how they take a refusal."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from lrrt_stage import RAMPS, LRCurve, LRRange, LRRTError, ramp

ANY_FLOAT = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e300, 5e-324])
LEARNING_RATES = st.floats(-12, 6).map(lambda exponent: 10.0**exponent)
# Losses as they are, with ties and explosions; and everything that a float can be.
LOSSES = st.floats(0, 10) | st.sampled_from([0.0, 1.0, 2.0, 1e30, 1e200, np.inf, np.nan])
STOPS = st.sampled_from(["completed", "diverged", "non-finite", "interrupted"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | ANY_FLOAT
    | st.text()
    # What Python writes into JSON, and nobody else reads.
    | st.sampled_from([np.nan, np.inf, 2**63, "\0"]),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=12,
)


@st.composite
def ranges(draw):
    """Ranges of up to twelve decades."""
    low = draw(LEARNING_RATES)
    return LRRange(low, low * draw(st.floats(1.001, 1e12)))


@st.composite
def curves(draw, losses=LOSSES | ANY_FLOAT):
    """Curves of a ramp that was run or cut off, with or without a probe."""
    iterations = draw(st.integers(10, 60))
    low = draw(LEARNING_RATES)
    lr = ramp(low, low * draw(st.floats(2, 1e10)), iterations, draw(st.sampled_from([*RAMPS])))
    length = draw(st.just(iterations) | st.integers(0, iterations))
    series = st.lists(draw(st.just(losses) | st.just(LOSSES)), min_size=length, max_size=length)
    names = draw(st.sets(st.sampled_from(["probe_loss", "val_loss", "full_val_loss"])))
    evaluated = {name: draw(series) for name in sorted(names)}
    return LRCurve(lr[:length], draw(series), **evaluated, stop=draw(STOPS))


def read_or_named(reader, name, content):
    """What a function makes of a file with this content, or a refusal that names the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        found = result_or_refusal(reader, path)
    assert not isinstance(found, LRRTError) or str(path) in str(found)
    return found


def result_or_refusal(function, *arguments, **named):
    """What a function returns, or the LRRTError that it raises, which is one line."""
    try:
        return function(*arguments, **named)
    except LRRTError as error:
        refusal = error
    assert len(str(refusal).splitlines()) == 1
    return refusal
