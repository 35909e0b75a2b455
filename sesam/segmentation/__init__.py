"""The mmsegmentation side: network, data set, loss, training, prediction."""

import contextlib
import io
import warnings

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # mmcv and mmseg tell at import which optional parts are not installed; none of them is used here
    warnings.simplefilter("ignore")
    import mmseg.datasets
    import mmseg.models  # noqa: F401  (registers its networks)
